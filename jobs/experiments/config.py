"""What an experiment's recipe may say: its keys, with defaults, bounds and help."""

import re
from dataclasses import dataclass
from typing import Any

from ...core.errors import InputError
from ...core.settings import check_bounds, setting
from ...core.storage import JsonObject

MODEL_STAGES = ("teacher", "student")


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
class CatalogConfig:
    """One of several catalogs, each of which has every model; `catalogs.NAME`."""

    recipe: str | None = setting(None, "base of every model on this catalog, in place of the experiment's")
    models: dict[str, JsonObject] = setting({}, "model -> dotted settings that differ on this catalog from the model's own")
    without: list[str] | dict[str, str] = setting(
        [], "models, ablations and sweeps that this catalog cannot have: a list of names, or name -> reason"
    )
    set: JsonObject = setting(
        {}, "dotted settings of this catalog over the base, source.* among them; catalogs.NAME.KEY=value is over them"
    )

    @property
    def left_out(self) -> dict[str, str]:
        """The names of `without`, with the reason of each."""
        return self.without if isinstance(self.without, dict) else dict.fromkeys(self.without, "left out by the recipe")


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
    catalogs: dict[str, CatalogConfig] = setting({}, "name -> catalog; every model is trained on each; not set: the one of source.*")

    def __post_init__(self) -> None:
        if not self.models:
            raise InputError("models is empty: name at least one, for instance models: {undistilled: {stage: student, ...}}")
        if not self.seeds or len({*self.seeds}) < len(self.seeds) or min(self.seeds) < 0:
            raise InputError(f"seeds={self.seeds}: name at least one seed, from 0, each once")
        for name in self.catalogs:
            if not re.fullmatch(r"[\w=+-]+", name):
                raise InputError(f"catalogs: {name!r} names a folder and settings; use letters, digits, _, =, + and - alone")


ENTRIES: JsonObject = {
    "models": ModelConfig,
    "ablations": AblationConfig,
    "sweeps": SweepConfig,
    "search": SearchConfig,
    "catalogs": CatalogConfig,
}
