"""`promptmm tune`: searches settings for a catalog within a budget of time, on validation, and writes a recipe that says why."""

import dataclasses
import re

from ...core.config import as_dict
from ...core.errors import InputError
from ...core.storage import exists, join, write_bytes
from ...core.teacher import teacher_kind
from ...core.teacher.ensemble import WEIGHT, given_weights
from ...graph_store.dataset import Dataset
from ..inspection.advice import Advice
from ..inspection.defaults import defaults_for
from ..inspection.derivation import recipe_of
from ..inspection.record import read_facts
from ..planning.engine import engine_of
from ..runs.folder import open_run_dataset
from ..runs.preparation import VALIDATE
from ..runs.stages import setting_defaults
from ..settings import DERIVED, Settings, load_settings
from ..tuning.search import Found, search_settings
from ..tuning.trials import Trials, flat
from .prepare import PREPARE
from .verb import Verb, run_checked

TUNED = "tuned.yaml"
OF_RECIPE = ("source", "teacher", "student", "distill", "labels")
UNITS = {"": 1.0, "s": 1.0, "m": 60.0, "h": 3600.0}


def seconds_of(budget: str) -> float:
    """Returns the seconds of a duration such as 90s, 10m or 2h.

    Raises:
        InputError: it is none.
    """
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([smh]?)\s*", budget)
    if match is None or not float(match[1]) > 0:
        raise InputError(f"tune.budget={budget!r}: expected a duration, such as 90s, 10m or 2h")
    return float(match[1]) * UNITS[match[2]]


def tune(settings: Settings) -> None:
    """Settings that suit the catalog, searched on validation within tune.budget -> tuned.yaml, a recipe with its reasons."""
    budget = seconds_of(settings.tune.budget)
    run_checked(PREPARE, settings)
    dataset = open_run_dataset(settings).without("test")
    if not dataset.has_split("validation"):
        raise InputError(f"{settings.dir}: the dataset has no validation split to choose on; {VALIDATE}")
    _check_engine(settings, dataset)
    settings = without_weights(settings)
    trials = Trials(settings, dataset)
    teacher, student = search_settings(trials, budget)
    url = join(settings.dir, TUNED)
    chosen = _recipe(settings, _derived(settings, dataset), teacher, student)
    write_bytes(url, recipe_of(chosen, _title(settings, trials, student)).encode())
    print(f"[tune] validation {trials.metric}: teacher {teacher.value:.4f}, student {student.value:.4f}; recipe: {url}", flush=True)
    print(f"[tune] go on with: promptmm pipeline {url}", flush=True)


def without_weights(settings: Settings) -> Settings:
    """Returns the settings without given weights of an ensemble's components: trials are compared by what validation makes of each."""
    if not teacher_kind(settings.teacher).is_ensemble or given_weights(settings.teacher) is None:
        return settings
    components = settings.teacher.components
    print("[tune] the weights of teacher.components are left out: validation chooses them for every trial", flush=True)
    free = {name: {key: value for key, value in own.items() if key != WEIGHT} for name, own in components.items()}
    return dataclasses.replace(settings, teacher=dataclasses.replace(settings.teacher, components=free))


def _check_engine(settings: Settings, dataset: Dataset) -> None:
    """Raises InputError where the settings ask for more than a trial has: one worker in this process, with the full engine."""
    choice = engine_of(settings, dataset, "plan")
    if choice.engine == "sampled" or settings.cluster.num_workers > 1:
        raise InputError(
            f"the trials of tune are trained by one worker with the full engine, and this run has cluster.engine={choice.engine} "
            f"({choice.reason}), cluster.num_workers={settings.cluster.num_workers}: tune on a smaller sample of the catalog, or set "
            "cluster.engine=full and cluster.num_workers=1"
        )


def _derived(settings: Settings, dataset: Dataset) -> list[Advice]:
    """Returns the settings that the run's derived.yaml has, with their reasons; none where the search began with a recipe."""
    facts = read_facts(settings.dir, dataset, settings.run.seed) if exists(join(settings.dir, DERIVED)) else None
    return [] if facts is None else defaults_for(facts)


def _recipe(settings: Settings, derived: list[Advice], teacher: Found, student: Found) -> list[Advice]:
    """Joins the settings that the search began with, where they are not the defaults, and those that it changed."""
    reasons = {one.setting: one for one in derived}
    values, defaults = flat(as_dict(settings)), flat(setting_defaults())
    joined: dict[str, Advice] = {}
    for name, value in values.items():
        if name.split(".")[0] in OF_RECIPE and value != defaults.get(name):
            reason = reasons.get(name)
            because = reason.because if reason is not None and reason.value == value else "given to the search"
            joined[name] = Advice(name, value, because)
    for one in [*teacher.advice, *student.advice]:
        joined[one.setting] = one
    return list(joined.values())


def _title(settings: Settings, trials: Trials, student: Found) -> str:
    return (
        f"Searched on validation in {len(trials.finished)} trials and {trials.spent:.0f} s (tune.budget={settings.tune.budget}): "
        f"{trials.metric} of the student {student.value:.4f}. The test split was not read."
    )


def load_tuned(recipe: str | None, overrides: list[str]) -> Settings:
    """Reads the settings that the search begins with; `budget=10m` is short for `tune.budget=10m`.

    Args:
        recipe, overrides: As of `load_settings`.
    """
    return load_settings(recipe, [f"tune.{word}" if word.startswith("budget=") else word for word in overrides])


TUNE: Verb[Settings] = Verb(
    "tune",
    tune,
    ("run", "source", "teacher", "student", "distill", "labels", "evaluation", "cluster", "tune"),
    products=("tuning", TUNED),
    load=load_tuned,
    derives=True,
)
