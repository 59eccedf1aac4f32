"""`promptmm refit`: trains what a finished run has chosen once more, on its validation interactions too."""

import dataclasses

from ...core.errors import InputError
from ...core.kinds import TEACHERS
from ..runs.folder import open_run_dataset
from ..runs.refitting import refit_settings, was_taught
from ..settings import Settings, load_saved, parse_override
from .pipeline import PIPELINE
from .products import forget
from .verb import Verb, run_in_folder

MAY_CHANGE = ("cluster", "graph", "recommend", "export")  # sections that decide where it runs and what is made of the student


def refit(settings: Settings) -> None:
    """A finished run -> the same choices trained on train and validation together, in the folder refit/ of the run."""
    dataset = open_run_dataset(settings)
    if not dataset.has_split("validation"):
        raise InputError(
            f"{settings.dir}: the run's dataset has no validation split, so every interaction that is not of the test trained already, and "
            "nothing was chosen that refit could keep"
        )
    taught = was_taught(settings)
    final = refit_settings(settings, taught)
    print(f"[refit] with the validation interactions, in {final.dir}: {_in_words(final, taught)}", flush=True)
    run_in_folder(PIPELINE, final, forget)


def _in_words(final: Settings, taught: bool) -> str:
    """Says what is kept of the run's choices."""
    student = f"student of {final.student.train.epochs} epochs"
    if not taught:
        return student
    teacher = final.teacher
    if TEACHERS.get(teacher.kind).is_ensemble:
        parts = [f"{name} {own['weight']:.2f}" for name, own in teacher.components.items()]
        return f"teacher of {', '.join(parts)}; {student}"
    how = "its chosen settings" if TEACHERS.get(teacher.kind).is_fitted else f"{teacher.train.epochs} epochs"
    return f"teacher {teacher.kind} with {how}; {student}"


def load_refit(recipe: str | None, overrides: list[str]) -> Settings:
    """Reads the settings of a finished run, `run.dir`.

    Args:
        recipe: Must be None: the run has its settings already.
        overrides: `key=value`, of `run.dir`, `run.redo` and the sections that `MAY_CHANGE` names.

    Raises:
        InputError: a recipe is named, the folder has no run, or a setting would change the run's choices.
    """
    if recipe is not None:
        raise InputError(f"refit {recipe}: refit takes the settings of a finished run and no recipe; name its folder: run.dir=DIR")
    given = {parse_override(word)[0] for word in overrides}
    if "cluster.engine" in given:
        raise InputError("cluster.engine: refit trains with the engine that the run was trained with; leave it out")
    settings = load_saved(MAY_CHANGE, overrides, ("run.redo", "run.trackers"))
    if "recommend.output" in given:
        return settings
    return dataclasses.replace(settings, recommend=dataclasses.replace(settings.recommend, output=None))  # the run's lists stay its own


REFIT: Verb[Settings] = Verb(
    "refit", refit, ("run", *MAY_CHANGE), is_part_of_run=False, excluded=("run.seed", "cluster.engine"), load=load_refit
)
