"""The engine of a run, and why it is that one."""

from dataclasses import dataclass, replace

from ...graph_store.dataset import Dataset
from ..runs.lineage import plan_inputs
from ..runs.stages import differences, read_record, setting_defaults
from ..settings import Settings
from .block_sizes import BlockSizes, Seeds
from .hosts import available_memory, stages_of
from .record import read_plan
from .sizes import Sizes
from .units import GIB


@dataclass(frozen=True)
class Choice:
    """An engine, "full" or "sampled", and the reason for it."""

    engine: str
    reason: str


def choose_engine(settings: Settings, dataset: Dataset, available: int | None) -> Choice:
    """Chooses the engine: the one that is set; with auto the one that the settings need, else full where it fits, else sampled.

    Args:
        settings: Of the run.
        dataset: The run's.
        available: Bytes of memory of the smallest host, None where it is not known.
    """
    if settings.cluster.engine != "auto":
        return Choice(settings.cluster.engine, f"cluster.engine={settings.cluster.engine}")
    if settings.why_full_engine is not None:
        return Choice("full", settings.why_full_engine)
    if settings.needs_sampled_engine is not None:
        return Choice("sampled", f"{settings.needs_sampled_engine} is a setting of neighbour blocks")
    if available is None:
        return Choice("full", "the memory of the cluster's hosts is not known; cluster.host_memory says it")
    full = replace(settings, cluster=replace(settings.cluster, engine="full"))
    stages = stages_of(full, Sizes.of(settings, dataset), _no_blocks, _no_blocks)
    largest = max((stage for stage in stages if stage.name in ("train-teacher", "distill", "tune-prompt")), key=lambda stage: stage.total)
    needed = f"the full engine needs {largest.total / GIB:.1f} GiB in {largest.name}, and a host has {available / GIB:.1f} GiB"
    return Choice("full" if largest.total <= available else "sampled", needed)


def _no_blocks(seeds: Seeds, fan_outs: list[int]) -> BlockSizes:
    raise AssertionError("the full engine has no blocks")


def engine_of(settings: Settings, dataset: Dataset, verb: str) -> Choice:
    """Finds the engine of a run: as set, else what a stage was started with here, else what plan chose for these settings, else now.

    Args:
        settings: Of the run.
        dataset: The run's.
        verb: A stage's own start comes first; plan chooses anew where no stage has started.
    """
    if settings.cluster.engine != "auto":
        return choose_engine(settings, dataset, None)
    for stage in sorted(("train-teacher", "distill"), key=lambda stage: stage != verb):
        record = read_record(settings.dir, stage)
        if record is not None and "engine" in record.made_with:  # version 0.1.0 wrote none
            return Choice(record.made_with["engine"]["engine"], f"{stage} was started here with it")
    plan = read_plan(settings.dir) if verb != "plan" else None
    if plan is not None and not differences(plan.made_with, plan_inputs(settings, dataset), setting_defaults()):
        return Choice(plan.engine, plan.reason)
    return choose_engine(settings, dataset, available_memory(settings))


def with_engine(settings: Settings, choice: Choice) -> Settings:
    """The settings with the chosen engine in place of `auto`."""
    return replace(settings, cluster=replace(settings.cluster, engine=choice.engine))


def settle_engine(settings: Settings, dataset: Dataset, verb: str) -> Settings:
    """Puts the run's engine in place of `cluster.engine=auto`, and says which it is and why."""
    if settings.cluster.engine != "auto":
        return settings
    choice = engine_of(settings, dataset, verb)
    print(f"[{verb}] engine: {choice.engine} ({choice.reason})", flush=True)
    return with_engine(settings, choice)
