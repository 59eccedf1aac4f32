"""An experiment's recipe: which models, seeds, ablations, sweeps and searches; checked before any work starts."""

import dataclasses
import difflib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

from ...core.errors import InputError
from ...core.metric_names import check_metric
from ...core.metrics import is_of_users
from ...core.storage import JsonObject, join
from ..settings import Settings, build, load_settings, parse_override, read_recipe
from .catalogs import OF_ALL, chosen, config_of, naming, overrides_of, split_overrides
from .config import ENTRIES, CompareConfig, ExperimentConfig, RangeConfig, TransferConfig

PREFIX = "experiment."
NOT_OF_CELLS = (
    "run.seed",
    "run.redo",
    "labels.mode",
    "cluster.executor",
    "cluster.engine",
    "cluster.zero_stage",
    "cluster.num_workers",
    "cluster.num_labelers",
    "cluster.micro_batches",
)
PACKAGE = "promptmm.jobs.recipes.experiments"


@dataclass(frozen=True)
class Recipe:
    """An experiment's recipe with what the command line says.

    Attributes:
        name: Of the recipe.
        config: The experiment.
        overrides: key=value, over the base recipe of every model.
        base: The base recipe's settings with them; `run.dir` is the experiment's folder.
        catalog: Which of several catalogs it is of; None where there is only one.
    """

    name: str
    config: ExperimentConfig
    overrides: tuple[str, ...]
    base: Settings
    catalog: str | None = None

    @property
    def title(self) -> str:
        """The recipe's name, with the catalog's."""
        return self.name if self.catalog is None else f"{self.name}, catalog {self.catalog}"

    @property
    def shown_settings(self) -> JsonObject:
        """What the recipe sets for this catalog and the command line for it or for all, without where files lie and what runs it."""
        values = dict(parse_override(override) for override in self.overrides)
        return {key: value for key, value in values.items() if key != "source.path" and not key.startswith(OF_ALL)}

    def label(self, text: str) -> str:
        """Puts the catalog before what is said of one of its models or cells."""
        return text if self.catalog is None else f"{self.catalog}: {text}"

    @property
    def metric(self) -> str:
        """The metric of searches and tests."""
        return self.config.metric or self.base.evaluation.select_by

    def settings(self, url: str, seed: int, changes: Mapping[str, object]) -> Settings:
        """Builds the settings of one cell.

        Args:
            url: The cell's folder.
            seed: Its seed.
            changes: Dotted settings over the base.
        """
        own = {**changes, "run.dir": url, "run.seed": seed, "cluster.engine": "full"}
        return load_settings(self.config.recipe, [*self.overrides, *(f"{key}={json.dumps(value)}" for key, value in own.items())])


@dataclass(frozen=True)
class CatalogsRecipe:
    """The recipe of an experiment over several catalogs, with what the command line says.

    Attributes:
        name: Of the recipe.
        config: The experiment.
        overrides: All words of the command line, but for those of the experiment's own keys.
        dir: The experiment's folder.
        recipes: The experiment on each catalog, by name; its folder is `dir`/catalogs/NAME.
    """

    name: str
    config: ExperimentConfig
    overrides: tuple[str, ...]
    dir: str
    recipes: dict[str, Recipe]


AnyRecipe: TypeAlias = Recipe | CatalogsRecipe


def load_experiment(recipe: str | None, overrides: list[str]) -> AnyRecipe:
    """Reads an experiment, with `key=value` over its base recipe and `experiment.key=value` over its own keys.

    Args:
        recipe: A YAML file or the name of a shipped experiment; None is refused.
        overrides: The words after it; `catalogs.NAME.key=value` is over the base recipe of one catalog, and `experiment.catalogs=[NAME,
            ...]` keeps some of the recipe's catalogs.

    Raises:
        InputError: an unknown key (with the nearest valid one), a wrong type, or what an experiment cannot do.
    """
    if recipe is None:
        raise InputError("experiment needs its recipe: a YAML file or a shipped experiment, for instance `promptmm experiment tiktok ...`")
    values = read_recipe(recipe, PACKAGE)
    for override in overrides:
        if override.startswith(PREFIX):
            key, value = parse_override(override.removeprefix(PREFIX))
            values[key] = chosen(values.get(key) or {}, value) if key == "catalogs" and isinstance(value, list) else value
    _check_entries(values, recipe)
    for holder in (values, *(values.get("catalogs") or {}).values()):
        beside = Path(recipe).parent / str(holder.get("recipe"))
        if beside.is_file():
            holder["recipe"] = str(beside)
    try:
        config = build(ExperimentConfig, values)
    except InputError as error:
        raise InputError(f"{recipe}: {error}") from error
    name = Path(recipe).stem
    shared, own = split_overrides(config, [o for o in overrides if not o.startswith(PREFIX)])
    folder = f"run.dir=runs/experiment-{name}"
    if not config.catalogs:
        return _load(name, config, [folder, *shared])
    run_dir = load_settings(None, [folder, *(o for o in shared if o.startswith("run.dir="))]).dir
    recipes = {}
    for catalog in config.catalogs:
        with naming(catalog):
            of_catalog = [*overrides_of(config, catalog, shared, own[catalog]), f"run.dir={join(run_dir, 'catalogs', catalog)}"]
            recipes[catalog] = _load(name, config_of(config, catalog), of_catalog, catalog)
    metrics = {catalog: of_catalog.metric for catalog, of_catalog in recipes.items()}
    if len({*metrics.values()}) > 1:
        raise InputError(
            f"{recipe}: the catalogs are compared by one metric, and theirs are {metrics}; set metric (or experiment.metric=...)"
        )
    return CatalogsRecipe(name, config, tuple(o for o in overrides if not o.startswith(PREFIX)), run_dir, recipes)


def _load(name: str, config: ExperimentConfig, overrides: list[str], catalog: str | None = None) -> Recipe:
    base = load_settings(config.recipe, overrides)
    experiment = Recipe(name, config, tuple(o for o in overrides if not o.startswith("run.dir=")), base, catalog)
    _check_base(experiment)
    return experiment


def _check_entries(values: dict, where: str) -> None:
    """Checks the names of keys, at every level."""
    _check_keys(values, ExperimentConfig, where)
    for section, kind in ENTRIES.items():
        entries = values.get(section) or {}
        _need_mapping(entries, f"{where}: {section}")
        for name, entry in entries.items():
            _check_keys(entry, kind, f"{where}: {section}.{name}")
    for model, search in (values.get("search") or {}).items():
        for key, space in (search.get("space") or {}).items():
            if isinstance(space, Mapping):
                _check_keys(space, RangeConfig, f"{where}: search.{model}.space.{key}")
    compare = values.get("compare") or {}
    _check_keys(compare, CompareConfig, f"{where}: compare")
    _check_keys(compare.get("transferability") or {}, TransferConfig, f"{where}: compare.transferability")


def _need_mapping(values: object, where: str) -> None:
    if not isinstance(values, Mapping):
        raise InputError(f"{where}: expected keys with values, found {values!r}")


def _check_keys(values: Any, kind: Any, where: str) -> None:
    _need_mapping(values, where)
    names = [field.name for field in dataclasses.fields(kind)]
    for key in values:
        if key not in names:
            close = difflib.get_close_matches(str(key), names, 1, 0.6)
            hint = f"did you mean {close[0]}?" if close else f"the keys are {', '.join(names)}"
            raise InputError(f"{where}: unknown key {key}; {hint}")


def _check_base(recipe: Recipe) -> None:
    """Refuses settings that the cells of an experiment cannot have."""
    base, metric = recipe.base, recipe.metric
    if base.cluster.engine == "sampled" or base.cluster.num_workers > 1:
        raise InputError(
            f"cluster.engine={base.cluster.engine}, cluster.num_workers={base.cluster.num_workers}: a cell of an experiment is trained by "
            "one worker with the full engine; set cluster.engine=full and cluster.num_workers=1 (cells run beside each other), or use "
            "`promptmm pipeline` for one large model"
        )
    if base.cluster.zero_stage:
        raise InputError(
            f"cluster.zero_stage={base.cluster.zero_stage}: a cell of an experiment is one process, which has nothing to shard; set "
            "cluster.zero_stage=0 (and teacher.reduction_dtype=float32), or use `promptmm pipeline`"
        )
    if base.labels.mode == "streamed":
        raise InputError("labels.mode=streamed: the cells of an experiment write their labels; set labels.mode=materialised")
    if base.run.redo is not None:
        raise InputError("run.redo is not for experiments: remove the folders of the cells to train again, or use another run.dir")
    if any(override.startswith("run.seed=") for override in recipe.overrides):
        raise InputError("run.seed is not for experiments: set experiment.seeds=[...]")
    of_users = [name for name in base.evaluation.metric_names if is_of_users(name)]
    check_metric("metric", metric, of_users, base.evaluation.cutoffs, ", which every user has,")


def describe_recipe() -> str:
    """Lists all keys of an experiment's recipe, with their help."""
    lines = []
    for field in dataclasses.fields(ExperimentConfig):
        entry = ENTRIES.get(field.name) or {"compare": CompareConfig}.get(field.name)
        help = field.metadata["help"] if field.metadata else (entry.__doc__ or "").splitlines()[0]
        lines.append(f"  {field.name}: {help}")
        for inner in dataclasses.fields(entry) if entry else ():
            lines.append(f"    {inner.name}: {inner.metadata['help']}")
    return "\n".join(lines)
