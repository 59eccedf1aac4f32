"""An experiment's recipe: which models, seeds, ablations, sweeps and searches; checked before any work starts."""

import dataclasses
import difflib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ...core.errors import InputError
from ...core.metrics import is_of_users
from ...core.settings import check_bounds, setting
from ...core.storage import JsonObject
from ..settings import Settings, build, load_settings, parse_override, read_recipe

MODEL_STAGES = ("teacher", "student")
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
class ModelConfig:
    """One model; `models.NAME`."""

    stage: str = setting("student", "what is trained", choices=MODEL_STAGES)
    teacher: str | None = setting(None, "model that a student learns from, at the same seed; not set: with distill.use_teacher=false")
    set: JsonObject = setting({}, "dotted settings of the stage that differ from the base recipe")

    def __post_init__(self) -> None:
        check_bounds(self, "models")


@dataclass(frozen=True)
class AblationConfig:
    """A model with some settings changed; `ablations.NAME`."""

    of: str = setting("student", "model that is changed")
    set: JsonObject = setting({}, "dotted settings that differ from that model's")
    student: str | None = setting(None, "of an ablated teacher: the student model that is trained from it, and reported in its place")


@dataclass(frozen=True)
class SweepConfig:
    """A curve over one setting; `sweeps.NAME`."""

    of: str = setting("student", "model whose setting is varied")
    values: list[Any] = setting([], "values of the setting, a model each")
    student: str | None = setting(None, "of a varied teacher: the student model that is trained from it, and reported in its place")
    setting: str = setting("", "dotted setting")  # last, since the name hides the function


@dataclass(frozen=True)
class RangeConfig:
    """A range of a search; of whole numbers where both ends are."""

    low: float | int = setting(0, "lowest value")
    high: float | int = setting(1, "highest value")
    log: bool = setting(False, "uniform in the logarithm")


@dataclass(frozen=True)
class SearchConfig:
    """Random search of a model's settings on validation; `search.MODEL`."""

    trials: int = setting(20, "points drawn; all points of a space that has no more", ge=1)
    space: dict[str, list[Any] | RangeConfig] = setting({}, "dotted setting -> list of values, or {low: , high: , log: true}")
    seeds: list[int] = setting([0], "seeds whose mean validation metric counts")

    def __post_init__(self) -> None:
        check_bounds(self, "search")


@dataclass(frozen=True)
class TransferConfig:
    """The three models of transferability; `compare.transferability`."""

    student: str = setting("student", "distilled student")
    teacher: str = setting("teacher", "its teacher")
    undistilled: str = setting("undistilled", "the same student without a teacher")


@dataclass(frozen=True)
class CompareConfig:
    """What the report compares; section `compare`."""

    references: list[str] = setting([], "models that are tested against every other model; not set: every student with a teacher")
    transferability: TransferConfig | None = setting(None, "models of (student - undistilled) / (teacher - undistilled)")


@dataclass(frozen=True)
class ExperimentConfig:
    """An experiment's recipe."""

    recipe: str | None = setting(None, "base of every model: a YAML file (relative to this one) or a shipped recipe; key=value is over it")
    seeds: list[int] = setting([0, 1, 2, 3, 4], "a cell is trained for every model and seed")
    metric: str | None = setting(None, "validation metric of searches and test metric of the tests; not set: evaluation.select_by")
    models: dict[str, ModelConfig] = setting({}, "name -> model")
    ablations: dict[str, AblationConfig] = setting({}, "name -> ablation")
    sweeps: dict[str, SweepConfig] = setting({}, "name -> sweep")
    search: dict[str, SearchConfig] = setting({}, "model -> its search; the best trial's settings become the model's")
    compare: CompareConfig = CompareConfig()

    def __post_init__(self) -> None:
        if not self.models:
            raise InputError("models is empty: name at least one, for instance models: {undistilled: {stage: student, ...}}")
        if not self.seeds or len({*self.seeds}) < len(self.seeds) or min(self.seeds) < 0:
            raise InputError(f"seeds={self.seeds}: name at least one seed, from 0, each once")


ENTRIES: JsonObject = {"models": ModelConfig, "ablations": AblationConfig, "sweeps": SweepConfig, "search": SearchConfig}


@dataclass(frozen=True)
class Recipe:
    """An experiment's recipe with what the command line says.

    Attributes:
        name: Of the recipe.
        config: The experiment.
        overrides: key=value, over the base recipe of every model.
        base: The base recipe's settings with them; `run.dir` is the experiment's folder.
    """

    name: str
    config: ExperimentConfig
    overrides: tuple[str, ...]
    base: Settings

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


def load_experiment(recipe: str | None, overrides: list[str]) -> Recipe:
    """Reads an experiment, with `key=value` over its base recipe and `experiment.key=value` over its own keys.

    Args:
        recipe: A YAML file or the name of a shipped experiment; None is refused.
        overrides: The words after it.

    Raises:
        InputError: an unknown key (with the nearest valid one), a wrong type, or what an experiment cannot do.
    """
    if recipe is None:
        raise InputError("experiment needs its recipe: a YAML file or a shipped experiment, for instance `promptmm experiment tiktok ...`")
    values = read_recipe(recipe, PACKAGE)
    for override in overrides:
        if override.startswith(PREFIX):
            key, value = parse_override(override.removeprefix(PREFIX))
            values[key] = value
    _check_entries(values, recipe)
    beside = Path(recipe).parent / str(values.get("recipe"))
    if beside.is_file():
        values["recipe"] = str(beside)
    try:
        config = build(ExperimentConfig, values)
    except InputError as error:
        raise InputError(f"{recipe}: {error}") from error
    name = Path(recipe).stem
    settings = tuple(o for o in overrides if not o.startswith(PREFIX))
    base = load_settings(config.recipe, [f"run.dir=runs/experiment-{name}", *settings])
    experiment = Recipe(name, config, tuple(o for o in settings if not o.startswith("run.dir=")), base)
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
    chosen, _, cutoff = metric.rpartition("@")
    of_users = [name for name in base.evaluation.metric_names if is_of_users(name)]
    if chosen not in of_users or cutoff not in map(str, base.evaluation.cutoffs):
        raise InputError(
            f"metric={metric!r}: expected METRIC@K with METRIC one of {', '.join(of_users)}, which every user has, and K one of "
            f"evaluation.cutoffs={base.evaluation.cutoffs}"
        )


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
