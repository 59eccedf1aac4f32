"""`plan`: what each role and host will need, what a step sends and how long it takes at least, before anything expensive starts."""

import functools

from ...graph_store.dataset import Dataset
from ..runs.lineage import plan_inputs
from ..runs.stages import differences, setting_defaults
from ..settings import Settings
from . import block_sizes
from .block_sizes import BlockSizes, Seeds
from .engine import Choice, choose_engine, with_engine
from .hosts import check_fits, stages_of
from .label_needs import label_row, rankings_bytes, user_label_bytes
from .rates import Rates
from .record import HostPlan, Plan, RatePlan, RolePlan, StepPlan
from .sizes import Need, Sizes
from .step_costs import StepCosts, labelling_costs, raw_row_ratios, steps_of


def still_holds(plan: Plan, settings: Settings, dataset: Dataset, available: int | None, choice: Choice) -> bool:
    """Whether an earlier plan is of the same settings, engine and memory; measured again, its rates would differ a little."""
    same = plan.engine == choice.engine and plan.available_bytes == available
    return same and not differences(plan.made_with, plan_inputs(settings, dataset), setting_defaults())


def make_plan(settings: Settings, dataset: Dataset, available: int | None, choice: Choice | None = None) -> Plan:
    """Plans a run: engine, memory of every role and host, bytes that a worker sends in a step, and bounds on its time.

    Args:
        settings: Of the run.
        dataset: The run's.
        available: Bytes of memory of the smallest host that runs workers, None where it is not known yet (an idle autoscaled cluster).
        choice: The engine where it is known already.

    Raises:
        InputError: a role, or what shares a host, needs more than that; the message has the largest number and the setting that changes it.
    """
    choice = choice or choose_engine(settings, dataset, available)
    asked, settings, sizes = settings, with_engine(settings, choice), Sizes.of(settings, dataset)

    @functools.cache
    def cached(seeds: Seeds, fan_outs: tuple[int, ...]) -> BlockSizes:
        return block_sizes.expected(dataset, seeds, fan_outs)

    def expected(seeds: Seeds, fan_outs: list[int]) -> BlockSizes:
        return cached(seeds, tuple(fan_outs))

    def most(seeds: Seeds, fan_outs: list[int]) -> BlockSizes:
        return block_sizes.most(dataset, seeds, fan_outs)

    stages = stages_of(settings, sizes, expected, most)
    check_fits(stages, available)
    rates, by_example = Rates.of(settings.cluster), sizes.taught and settings.labels.by == "examples"
    return Plan(
        engine=choice.engine,
        reason=choice.reason,
        made_with=plan_inputs(asked, dataset),
        available_bytes=available,
        roles={need.role: _role(need) for stage in stages for need, _ in stage.roles},
        hosts={stage.name: HostPlan(stage.total, {need.role: count for need, count in stage.roles}) for stage in stages},
        rates=RatePlan(rates.memory, rates.multiply_adds, rates.network),
        steps={name: _step(costs, rates) for name, costs in steps_of(settings, sizes, expected).items()},
        labelling={name: _step(costs, rates) for name, costs in labelling_costs(settings, sizes).items()},
        label_bytes_an_epoch=int(sizes.edges * label_row(settings, sizes)) if by_example else 0,
        user_label_bytes=int(user_label_bytes(settings, sizes)) if sizes.taught and settings.labels.by == "users" else 0,
        rankings_bytes=rankings_bytes(settings, sizes),
        raw_row_ratios=raw_row_ratios(settings, dataset) if sizes.taught and sizes.dims else {},
    )


def _role(need: Need) -> RolePlan:
    return RolePlan(need.total, need.bound, need.mapped, need.base, need.moment, need.parts)


def _step(costs: StepCosts, rates: Rates) -> StepPlan:
    bounds = rates.bounds(costs)
    return StepPlan(costs.sent, costs.exchanged, costs.multiply_adds, costs.moved, max(bounds.values()), bounds)
