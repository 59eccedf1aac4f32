"""What an experiment over several catalogs is on each: one of its own, with the catalog's settings and without what it leaves out."""

import contextlib
import difflib
import json
from collections.abc import Iterable, Iterator
from dataclasses import replace

from ...core.errors import InputError
from ...core.storage import JsonObject
from .config import AblationConfig, ExperimentConfig, SweepConfig

PREFIX = "catalogs."
OF_ALL = ("run.", "cluster.")  # what the cells of all catalogs share


@contextlib.contextmanager
def naming(catalog: str | None) -> Iterator[None]:
    """Names the catalog in the message of an InputError that the block raises; None: there is only one."""
    try:
        yield
    except InputError as error:
        if catalog is None:
            raise
        raise InputError(f"{PREFIX}{catalog}: {error}") from error


def chosen(catalogs: JsonObject, names: list[str]) -> JsonObject:
    """Picks some of a recipe's catalogs, in the recipe's order.

    Raises:
        InputError: the recipe has no catalog of that name, or none is named.
    """
    if not names:
        raise InputError("experiment.catalogs=[]: name at least one of the recipe's catalogs")
    for name in names:
        _need_known(name, catalogs, "experiment.catalogs")
    return {name: entry for name, entry in catalogs.items() if name in names}


def config_of(config: ExperimentConfig, catalog: str) -> ExperimentConfig:
    """Builds the experiment of one catalog.

    Args:
        config: The experiment over several.
        catalog: One of `config.catalogs`.

    Returns:
        Its models with the catalog's own settings over theirs, and its ablations, sweeps, searches and comparisons, all of them without
        what the catalog leaves out.

    Raises:
        InputError: the catalog names a model that there is not, or leaves out what others need.
    """
    own = config.catalogs[catalog]
    gone = left_out(config, catalog)
    for name in own.models:
        _need_known(name, config.models, "models")
        if name in gone:
            raise InputError(f"models.{name} has settings, and {PREFIX}{catalog}.without leaves it out; keep one of the two")
    models = {name: replace(m, set={**m.set, **own.models.get(name, {})}) for name, m in config.models.items() if name not in gone}
    if not models:
        raise InputError("without leaves out every model; keep at least one, or leave out the catalog")
    for name, model in models.items():
        if model.teacher in gone and model.set.get("distill.use_teacher", True):
            raise InputError(
                f"model {name!r} learns from {model.teacher!r}, which without leaves out: leave {name!r} out too, or give the teacher "
                f"settings that this catalog can have ({PREFIX}{catalog}.models.{model.teacher})"
            )
    compare, transfer = config.compare, config.compare.transferability
    references = [name for name in compare.references if name not in gone]
    if compare.references and not references:
        raise InputError(f"without leaves out all of compare.references={compare.references}; keep one of them, or name another one")
    if transfer is not None and {transfer.student, transfer.teacher, transfer.undistilled} & {*gone}:
        transfer = None
    return replace(
        config,
        recipe=own.recipe or config.recipe,
        models={name: replace(m, teacher=None) if m.teacher in gone else m for name, m in models.items()},
        ablations={name: ablation for name, ablation in config.ablations.items() if name not in gone},
        sweeps={name: sweep for name, sweep in config.sweeps.items() if name not in gone},
        search={name: search for name, search in config.search.items() if name not in gone},
        compare=replace(compare, references=references, transferability=transfer),
        catalogs={},
    )


def left_out(config: ExperimentConfig, catalog: str) -> dict[str, str]:
    """Lists what a catalog leaves out, with the reason of each: what it names, ablations and sweeps of these, and their teachers.

    Raises:
        InputError: it names what there is not.
    """
    reasons = config.catalogs[catalog].left_out
    for name in reasons:
        _need_known(name, [*config.models, *config.ablations, *config.sweeps], "without")
    found = dict(reasons)
    variants: dict[str, AblationConfig | SweepConfig] = {**config.ablations, **config.sweeps}
    for name, variant in variants.items():
        for other in filter(None, (variant.of, variant.student)):
            if other in reasons:
                found.setdefault(name, f"{other} is left out")
    for name, sweep in config.sweeps.items():
        if name in found:
            found |= {f"{name}={value}": found[name] for value in sweep.values}
    return found | {f"{name} (teacher)": reason for name, reason in found.items() if name not in config.models}


def overrides_of(config: ExperimentConfig, catalog: str, shared: Iterable[str], own: Iterable[str]) -> list[str]:
    """Lists the `key=value` overrides of one catalog over its base recipe.

    Args:
        config: The experiment over several.
        catalog: One of them.
        shared: The command line's overrides of all catalogs.
        own: Its overrides of this one, without the prefix.

    Returns:
        The catalog's `set`, then `shared`, then `own`: the last word counts.

    Raises:
        InputError: one of the settings is of the whole experiment, or of one catalog and given for all.
    """
    of_catalog = [f"{key}={json.dumps(value)}" for key, value in config.catalogs[catalog].set.items()]
    for override in [*of_catalog, *own]:
        if override.startswith(OF_ALL):
            key = override.partition("=")[0]
            raise InputError(f"{key} is shared by all catalogs; give it on the command line without {PREFIX}{catalog}")
    for override in shared:
        if override.startswith("source."):
            raise InputError(
                f"{override.partition('=')[0]} is of one catalog, and this experiment has several; set it with the catalog's name, for "
                f"instance {PREFIX}{catalog}.{override} (the catalogs are {', '.join(config.catalogs)})"
            )
    return [*of_catalog, *shared, *own]


def split_overrides(config: ExperimentConfig, overrides: Iterable[str]) -> tuple[list[str], dict[str, list[str]]]:
    """Parts `catalogs.NAME.KEY=value` from the other overrides.

    Returns:
        The others, and those of every catalog without the prefix.

    Raises:
        InputError: the recipe has no catalog of that name.
    """
    shared: list[str] = []
    own: dict[str, list[str]] = {name: [] for name in config.catalogs}
    for override in overrides:
        if not override.startswith(PREFIX):
            shared.append(override)
            continue
        if not config.catalogs:
            raise InputError(f"{override}: this experiment's recipe has no catalogs; leave the prefix {PREFIX}NAME. out")
        key, sign, _ = override.removeprefix(PREFIX).partition("=")
        name, _, key = key.partition(".")
        if not key or not sign:
            raise InputError(f"{override}: expected {PREFIX}NAME.KEY=value, for instance {PREFIX}{next(iter(own))}.source.path=DIR")
        _need_known(name, config.catalogs, override)
        own[name].append(override.removeprefix(f"{PREFIX}{name}."))
    return shared, own


def _need_known(name: str, names: Iterable[str], where: str) -> None:
    known = list(names)
    if name not in known:
        close = difflib.get_close_matches(name, known, 1, 0.6)
        hint = f"did you mean {close[0]}?" if close else f"there are {', '.join(known)}"
        raise InputError(f"{where}: {name!r} is not one of this experiment's; {hint}")
