"""The verbs of the command line: the one table that the help, `run.redo` and the dispatch follow."""

import dataclasses
from typing import Any

from ...core.errors import InputError
from ...core.registry import Registry
from ...core.storage import exists, join
from ...distributed.parent import tell_parent
from ..inspection.defaults import defaults_for
from ..inspection.derivation import write_derived
from ..inspection.facts import CatalogFacts
from ..planning.engine import engine_of
from ..runs.folder import open_run_dataset
from ..runs.isolation import isolate
from ..runs.stages import read_record
from ..settings import DERIVED, Settings
from .experiment import EXPERIMENT
from .generate import GENERATE
from .inspect import INSPECT, facts_of
from .pipeline import PIPELINE
from .prepare import PREPARE
from .products import STAGE_VERBS, forget
from .refit import REFIT
from .tune import TUNE
from .verb import AnyVerb, Verb, run_in_folder

TABLE: tuple[AnyVerb, ...] = (
    GENERATE, *STAGE_VERBS, PIPELINE, INSPECT, TUNE, REFIT, EXPERIMENT,
)  # fmt: skip
VERBS: dict[str, AnyVerb] = {verb.name: verb for verb in TABLE}
assert {verb for verb in TABLE if verb.is_stage} == {*STAGE_VERBS}, "products.py has every stage of the table"

OWN_VERBS: Registry[AnyVerb] = Registry(
    "verb",
    "VERB",
    {verb.name: f"{verb.run.__module__}:{verb.run.__name__.upper()}" for verb in TABLE},
    __name__,
    lambda candidate: isinstance(candidate, Verb),
    "an object of promptmm.jobs.verbs.Verb",
)


def find_verb(name: str) -> AnyVerb:
    """Finds a verb by its name, or imports a user's own.

    Args:
        name: Of a verb that ships, or `module:attribute` of an own one.

    Raises:
        InputError: there is no such verb; the message lists those that ship.
    """
    if name in VERBS:
        return VERBS[name]
    if ":" not in name:
        raise InputError(f"unknown verb {name!r}; the verbs are {', '.join(VERBS)}")
    return OWN_VERBS.get(name)


def load(verb: AnyVerb, recipe: str | None, overrides: list[str]) -> Any:
    """Reads a verb's configuration from the words of a command; one that `derives` gets a recipe from its catalog's facts.

    For that the catalog is prepared and measured first, unless it has been, and derived.yaml is written into the run's folder. A run that
    has begun to train with other settings, as one of an earlier version has, goes on with those.

    Args:
        verb: The verb.
        recipe: A YAML file or a shipped recipe; None: none was named.
        overrides: `key=value`.

    Raises:
        InputError: a word is wrong, or the catalog is.
    """
    config = verb.load(recipe, overrides)
    if not verb.derives or recipe is not None or _began_without(config):
        return config
    if config.run.redo == "prepare":
        forget(config)
        overrides = [word for word in overrides if not word.startswith("run.redo=")]
    run_in_folder(PREPARE, dataclasses.replace(config, run=dataclasses.replace(config.run, redo=None)), lambda settings: None)
    facts = facts_of(config)
    write_derived(config.dir, defaults_for(facts, _fits_one_worker(verb, config, facts, overrides)))
    print(f"[{verb.name}] no recipe: settings from the catalog's facts are in {join(config.dir, DERIVED)}", flush=True)
    return verb.load(None, overrides)


def _fits_one_worker(verb: AnyVerb, config: Settings, facts: CatalogFacts, overrides: list[str]) -> bool:
    """Whether the full engine would train the one teacher that both engines can train, and so can train several."""
    write_derived(config.dir, defaults_for(facts, fits=False))
    try:
        single = verb.load(None, overrides)
    except InputError:  # the words do not fit these settings: those of the full engine say what is wrong with them, if anything
        return True
    return engine_of(single, open_run_dataset(single), "plan").engine == "full"


def _began_without(settings: Settings) -> bool:
    """Whether a run has trained something already without settings from its catalog's facts."""
    if settings.run.redo is not None or exists(join(settings.dir, DERIVED)):
        return False
    return any(read_record(settings.dir, stage) is not None for stage in ("train-teacher", "distill"))


def run_verb(name: str, settings: Settings) -> None:
    """Runs a verb with a run's settings, as the command line does.

    Args:
        name: Of a verb of a run or `generate`; or `module:attribute` of an own verb.
        settings: Of the run.

    Raises:
        InputError: there is no such verb, `run.redo` names another one, or the verb refuses its settings.
    """
    start(find_verb(name), settings)


def start(verb: AnyVerb, config: Any) -> None:
    """Runs a verb with the configuration that its `load` has read, in the run's folder where it is part of a run.

    Raises:
        InputError: `run.redo` names another verb, or the verb refuses its configuration.
    """
    if verb in TABLE:
        isolate(config)
    if verb.is_part_of_run:
        run_in_folder(verb, config, forget if verb not in TABLE else _begin)
    else:
        verb.run(config)


def _begin(settings: Settings) -> None:
    """Removes what `run.redo` names; from here on a verb that ships goes on, by the same command without it, from what this one leaves."""
    forget(settings)
    tell_parent("begun")
