"""Whether there is something to train a teacher from, and whether a student can learn from a teacher what the settings ask for."""

from ...core.artifact import has_artifact, read_manifest
from ...core.errors import InputError
from ...core.kinds import LOSSES, TEACHERS
from ...core.objectives import needs_modalities
from ...core.storage import join
from ...core.students import check_start_from_histories
from ...core.teacher.ensemble import artifact_of, in_part, parts_of
from ...distributed.artifacts.teacher import revision_url
from ...distributed.tasks.ensemble import check_of_dataset
from ...graph_store.dataset import Dataset
from ..settings import Settings
from .imported_vectors import check_vectors


def has_teacher(settings: Settings, dataset: Dataset) -> bool:
    """Whether the student of this run is distilled; the plan and the stages ask here alike.

    It is where that is asked for (`distill.use_teacher`), and there is what a teacher of `teacher.kind` learns from, or a teacher in the
    run's folder already.

    Raises:
        InputError: it is asked for with a content score, and the dataset has no modality; without that score it could be.
    """
    can_learn = bool(dataset.modalities) or not settings.teacher.reads_features
    if settings.distill.use_teacher and not can_learn:
        check_content(settings, dataset)
    return settings.distill.use_teacher and (can_learn or has_artifact(join(settings.teacher_dir, "teacher")))


def check_teachable(settings: Settings, dataset: Dataset) -> None:
    """Raises InputError where the dataset has nothing that a teacher of `teacher.kind` learns from, or something for it is missing.

    That is a package, a teacher of another run that an ensemble takes as a component, or vectors of a teacher that was trained elsewhere;
    their ids are read until the run's folder has the teacher that they make.
    """
    check_installed(settings)
    check_content(settings, dataset)
    _check_artifacts(settings, dataset)
    if not has_artifact(join(settings.teacher_dir, "teacher")):
        check_vectors(settings.teacher, dataset)
    if settings.teacher.reads_features and not dataset.modalities:
        raise InputError(
            f"{settings.dir}: the dataset has no modality, and teacher.kind={settings.teacher.kind} learns from at least one; name feature "
            "files in source.modalities, set teacher.kind=lightgcn or mf, or train a student alone with distill.use_teacher=false"
        )


def check_installed(settings: Settings) -> None:
    """Raises InputError where the teacher, or a component of it, needs a package that is not installed."""
    for name, part in parts_of(settings.teacher).items():
        with in_part(settings.teacher, name):
            TEACHERS.get(part.kind).check_installed()


def _check_artifacts(settings: Settings, dataset: Dataset) -> None:
    """Raises InputError where a teacher that an ensemble takes as an artifact is missing, of another dataset, or none to start from."""
    components = settings.teacher.components if TEACHERS.get(settings.teacher.kind).is_ensemble else {}
    for url in filter(None, map(artifact_of, components.values())):
        manifest, vectors = read_manifest(url, "teacher"), read_manifest(revision_url(url, 0), "teacher-vectors")
        check_of_dataset(url, manifest, dataset)
        if vectors.get("histories") and settings.distill.use_teacher:
            check_start_from_histories(settings.student, settings.cluster.engine)


def check_content(settings: Settings, dataset: Dataset) -> None:
    """Raises InputError where a linear model is to have a content score added, and the dataset has no modality."""
    for name, config in parts_of(settings.teacher).items():
        kind, weight = TEACHERS.get(config.kind), config.linear.content_weight
        if not dataset.modalities and weight != 0 and kind.learns_from_features(config) and not kind.reads_features:
            with in_part(settings.teacher, name):
                raise InputError(
                    f"{settings.dir}: teacher.linear.content_weight={'null' if weight is None else weight} adds a content score, and the "
                    "dataset has no modality; set content_weight=0, or name feature files in source.modalities"
                )


def check_teacher(settings: Settings, kind: str, by_modality: bool, learnt_prompt: bool = True) -> None:
    """Checks that a student can learn from a kind of teacher what the settings ask for.

    Args:
        settings: Of the run; `distill` is read.
        kind: The teacher's kind.
        by_modality: Whether it has vectors for each modality.
        learnt_prompt: False for a teacher that was trained with teacher.prompt=false.

    Raises:
        InputError: it has no prompt to tune, or no vectors by modality for a loss that learns from them: a shipped one, or one of the
            user's own that is marked with `core.objectives.learns_by_modality`.
    """
    distill = settings.distill
    has_prompt = TEACHERS.get(kind).has_prompt
    if not (has_prompt and learnt_prompt) and distill.tunes_prompt:
        why, other = (
            ("was trained with teacher.prompt=false and", "with teacher.prompt=true")
            if has_prompt
            else (f"is a {kind}, which", "with teacher.kind=promptmm")
        )
        raise InputError(
            f"the teacher {why} has no prompt to tune with distill.regime={distill.regime}, distill.rounds={distill.rounds}; "
            f"set distill.regime=rounds and distill.rounds=1, or train a teacher {other}"
        )
    starved = {} if by_modality else {name: weight for name, weight in distill.loss_weights().items() if needs_modalities(name)}
    if starved:
        shipped = {f"distill.{name}_weight": weight for name, weight in starved.items() if name in LOSSES.names}
        own = [name for name in starved if name not in LOSSES.names]
        reads = [*(f"{setting}={weight}" for setting, weight in shipped.items()), *(f"distill.losses of {name}" for name in own)]
        change = [*(f"set {setting}=0" for setting in shipped), *(f"leave {name} out of distill.losses" for name in own)]
        of_files = TEACHERS.get(kind).is_imported
        which = (
            "was trained elsewhere, and its files have no columns modal.<modality>"
            if of_files
            else f"is a {kind}, which has no vectors by modality"
        )
        raise InputError(f"the teacher {which} for {' and '.join(reads)} to learn from; {' and '.join(change)}")


def check_trained_teacher(settings: Settings) -> None:
    """Checks the teacher in the run's folder as `check_teacher` does, whatever this command's settings say of it.

    Raises:
        InputError: there is no complete teacher, or the student cannot learn from it what is asked for.
    """
    manifest = read_manifest(join(settings.teacher_dir, "teacher"), "teacher")
    config = manifest["config"]
    kind = config.get("kind", "promptmm")
    vectors = read_manifest(revision_url(join(settings.teacher_dir, "teacher"), 0), "teacher-vectors")
    check_teacher(settings, kind, bool(vectors["modalities"]), config.get("prompt", True))
    if vectors.get("histories"):
        check_start_from_histories(settings.student, settings.cluster.engine)
