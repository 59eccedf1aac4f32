"""Declares the sections of settings that the verbs themselves read: `run`, `export`, `recommend` and `tune`."""

import typing
from dataclasses import dataclass

from ..core.errors import InputError
from ..core.settings import check_bounds, setting
from ..distributed.loop.trackers import TRACKERS

# The stages of a run in their order: what run.redo may name. `jobs/verbs/table.py` asserts that its verbs agree.
STAGES = ("prepare", "partition", "plan", "train-teacher", "label", "distill", "evaluate", "export", "recommend")


@dataclass(frozen=True)
class RunConfig:
    """One run; section `run`."""

    dir: str | None = setting(None, "folder or URL that holds everything the run makes; not set: runs/<recipe>")
    seed: int = setting(0, "seed of initial weights, order, negatives, candidates and dropout", ge=0)
    trackers: list[str] = setting(
        ["tensorboard"], "where each epoch's numbers go beside metrics.jsonl: tensorboard, or your own as module:Class; [] for nowhere"
    )
    redo: str | None = setting(None, "verb to do again, with all after it; their results are removed first", choices=STAGES)

    def __post_init__(self) -> None:
        check_bounds(self, "run")
        for name in self.trackers:
            TRACKERS.check(name)


@dataclass(frozen=True)
class ExportConfig:
    """What the bundle holds beside the trained student; section `export`."""

    map_untouched: bool = setting(
        True,
        "items of the catalog without train interactions get the vectors that the map of new items gives their features, in place of the "
        "student's own; evaluate then ranks by the bundle's vectors too",
    )


@dataclass(frozen=True)
class RecommendConfig:
    """The lists that `recommend` makes; section `recommend`."""

    __pydantic_config__: typing.ClassVar[dict] = {"coerce_numbers_to_str": True}  # YAML reads the ids of recommend.users=[0, 17] as numbers

    users: list[str] | None = setting(
        None, "raw user ids; neither these nor a file: all with recommend.output, else the first user with train items"
    )
    users_from: str | None = setting(
        None, "URL of a file of raw user ids in place of recommend.users: an id a line, or Parquet with a column user"
    )
    k: int = setting(10, "items a list", ge=1)
    exclude_seen: bool = setting(True, "leave out the user's train items")
    output: str | None = setting(
        None,
        "URL for the lists: a Parquet file where it ends in .parquet, else a folder of Parquet files, which actors of Ray make (or this "
        "process, with cluster.executor=local), and which the same command completes after an interruption; not set: they are printed",
    )

    def __post_init__(self) -> None:
        check_bounds(self, "recommend")
        if self.users is not None and self.users_from is not None:
            raise InputError("recommend.users and recommend.users_from are both set; leave one of them out")

    @property
    def is_one_file(self) -> bool:
        """Whether all lists go into one file."""
        return self.output is not None and self.output.endswith(".parquet")


@dataclass(frozen=True)
class TuneConfig:
    """Settings of the search for a catalog's settings; section `tune`."""

    __pydantic_config__: typing.ClassVar[dict] = {"coerce_numbers_to_str": True}  # YAML reads tune.budget=90 as a number

    budget: str = setting("10m", "time of all trials together, such as 90s, 10m or 2h; the command again, with more, goes on")

    def __post_init__(self) -> None:
        check_bounds(self, "tune")
