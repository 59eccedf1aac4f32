"""What a step of one worker costs: bytes sent, multiply-adds and bytes of memory; expectations, of one worker on average."""

import itertools
from dataclasses import dataclass

from ...core.objectives import candidate_policy
from ...core.top_k import USERS_A_BLOCK
from ...graph_store.dataset import Dataset
from ..settings import Settings
from . import kinds
from .block_sizes import BlockSizes, Estimate
from .label_needs import candidates_of, rankings_bytes
from .reduction import tower_parameters
from .sizes import Sizes
from .student_needs import student_seeds
from .teacher_needs import row_widths, teacher_seeds
from .units import FLOAT, INDEX

Work = tuple[float, float]  # multiply-adds, and bytes of memory that are read or written


@dataclass(frozen=True)
class StepCosts:
    """What a step of one worker costs.

    Attributes:
        sent: Bytes to other workers and graph servers, by purpose.
        multiply_adds: Forward and backward.
        moved: Bytes of memory read or written at least: rows that are summed, reduced and updated.
    """

    sent: dict[str, int]
    multiply_adds: int
    moved: int

    @property
    def exchanged(self) -> int:
        """Bytes of the row exchange alone: what training reports as `mib_sent`."""
        return sum(self.sent.get(name, 0) for name in ("ids", "rows", "gradients of rows"))


def reduced_everywhere(parameters: int, workers: int, stage: int = 0) -> int:
    """Bytes that a worker sends so that gradients are averaged and weights whole: a ring, twice (with ZeRO 3 three times) around.

    Args:
        parameters: Number of replicated weights.
        workers: Number of workers.
        stage: The ZeRO stage.
    """
    return int((3 if stage == 3 else 2) * (workers - 1) / workers * parameters * FLOAT)


def _reduction_work(settings: Settings, sizes: Sizes, rows: float) -> Work:
    """The reduction of some items: forward, and backward without the gradient of the raw features."""
    adds = moved = 0.0
    for dim in sizes.dims.values():
        inner = [dim, *settings.teacher.hidden, settings.teacher.dim]
        adds += rows * (2 * inner[0] * inner[1] + 3 * sum(a * b for a, b in itertools.pairwise(inner[1:])))
        moved += rows * (2 * dim + 2 * sum(inner[1:])) * FLOAT
    return adds, moved


def _propagation_work(edges: float, rows: float, dim: int) -> Work:
    """Sums over edges into rows, forward and backward: each edge reads a row and its index and weight."""
    return 2 * edges * dim, 2 * (edges * (dim * FLOAT + INDEX + FLOAT) + rows * dim * FLOAT)


def _costs(sent: dict[str, float], *work: Work) -> StepCosts:
    whole = {name: int(size) for name, size in sent.items() if int(size)}
    return StepCosts(whole, int(sum(adds for adds, _ in work)), int(sum(moved for _, moved in work)))


def _adam(parameters: float) -> Work:
    """A step of Adam: it reads weight, gradient and two moments, and writes all but the gradient."""
    return 0.0, 7 * parameters * FLOAT


def full_teacher_step(settings: Settings, sizes: Sizes) -> StepCosts:
    """A teacher's step in the full engine: owners reduce all items, which are gathered whole; ID tables are replicated.

    Of a baseline this is still what a step takes at least: its item graphs and VBPR's further columns are left out.
    """
    config, workers, count = settings.teacher, settings.cluster.num_workers, len(sizes.dims)
    parameters, tables = tower_parameters(config, list(sizes.dims.values())), sizes.nodes * config.dim
    gathered, others = count * sizes.items * config.dim * FLOAT, (workers - 1) / workers
    sent = {
        "rows": others * gathered,  # every worker passes its share on to all others
        "gradients of rows": 2 * others * gathered,
        "gradients of replicated weights": reduced_everywhere(tables, workers)
        + reduced_everywhere(parameters, workers, settings.cluster.zero_stage),
    }
    propagation = kinds.num_propagations(config, count)
    return _costs(
        sent,
        _reduction_work(settings, sizes, sizes.items / workers),
        _propagation_work(propagation * sizes.edges, propagation * sizes.nodes / 2, config.dim),
        _adam(tables + parameters),
    )


def full_student_step(settings: Settings, sizes: Sizes) -> StepCosts:
    """A student's step in the full engine: its tables are replicated."""
    config, workers = settings.student, settings.cluster.num_workers
    tables, hops = sizes.nodes * config.dim, kinds.student_hops(config)
    scores = config.train.batch_size / workers * candidates_of(settings, sizes) * config.dim
    return _costs(
        {"gradients of replicated weights": reduced_everywhere(tables + _maps(settings, sizes), workers)},
        _propagation_work(2 * hops * sizes.edges, hops * sizes.nodes, config.dim),
        (3 * scores, 2 * scores * FLOAT),
        _adam(tables),
    )


def _maps(settings: Settings, sizes: Sizes) -> int:
    """Counts the parameters of the student's maps and decoders."""
    student, teacher = settings.student, settings.teacher
    maps = kinds.student_maps(student)
    targets = kinds.modal_dim(teacher, sizes)
    decoded = settings.distill.use_teacher and (settings.distill.decoder or student.dim != targets)
    return maps + (len(sizes.dims) * student.dim * targets if decoded else 0)


def _exchange(settings: Settings, blocks: BlockSizes, rows: float, floats: float) -> dict[str, float]:
    """Bytes that a worker sends for rows that others own: a place each, and rows and gradients for those who ask it for as many.

    Args:
        settings: Of the run.
        blocks: The worker's.
        rows: Number of rows asked for.
        floats: Numbers in the answers.
    """
    others = (settings.cluster.num_workers - 1) / settings.cluster.num_workers
    remote = (settings.graph.num_parts - 1) / settings.graph.num_parts
    return {
        "ids": others * rows * INDEX,
        "rows": others * floats * FLOAT,
        "gradients of rows": others * floats * FLOAT,
        "neighbours": remote * (2 * INDEX * blocks.asked + 2 * FLOAT * blocks.edges),  # asked of the servers, and answered by them
    }


def sampled_teacher_step(settings: Settings, sizes: Sizes, blocks: BlockSizes) -> StepCosts:
    """A teacher's step in the sampled engine: owners reduce what is asked for; d-sized rows travel, and their gradients."""
    config, workers = settings.teacher, settings.cluster.num_workers
    of_user, of_item = row_widths(settings, sizes)
    items = blocks.items + blocks.further_items
    floats = (blocks.users * of_user + items * of_item) * config.dim
    parameters = tower_parameters(config, list(sizes.dims.values()))
    sent = _exchange(settings, blocks, blocks.users + items, floats)
    sent["gradients of replicated weights"] = reduced_everywhere(parameters, workers, settings.cluster.zero_stage)
    sums = blocks.edges * (config.layers + len(sizes.dims) * max(0.5, config.modality_layers)) / kinds.num_hops(config)
    return _costs(
        sent,
        _reduction_work(settings, sizes, items / workers),  # at least: workers ask an owner for the same rows in part
        _propagation_work(sums, blocks.asked, config.dim),
        _adam((blocks.users + items) / workers * config.dim + parameters),
    )


def sampled_student_step(settings: Settings, sizes: Sizes, blocks: BlockSizes) -> StepCosts:
    """A student's step in the sampled engine: rows of the ID tables travel, and their gradients."""
    config, workers = settings.student, settings.cluster.num_workers
    rows = blocks.users + blocks.items
    scores = config.train.batch_size / workers * candidates_of(settings, sizes) * config.dim
    sent = _exchange(settings, blocks, rows, rows * config.dim)
    sent["gradients of replicated weights"] = reduced_everywhere(_maps(settings, sizes), workers)
    return _costs(
        sent,
        _propagation_work(blocks.edges, blocks.asked, config.dim),
        (3 * scores, 2 * scores * FLOAT),
        _adam(rows / workers * config.dim),
    )


def steps_of(settings: Settings, sizes: Sizes, blocks: Estimate) -> dict[str, StepCosts]:
    """Costs of a step of the run's teacher, where it has one that is trained, and of its student.

    Args:
        settings: Of the run, with its engine.
        sizes: Of the catalog.
        blocks: Sizes of a worker's neighbour blocks; the full engine does not ask for them.
    """
    fan_outs, sampled = settings.sampling.fan_outs_of, settings.cluster.engine == "sampled"
    trained = kinds.settings_of_components(settings) if sizes.taught else []
    costs = []
    for each in (each for each in trained if kinds.takes_steps(each.teacher)):
        if sampled:
            of_teacher = blocks(teacher_seeds(each, sizes), fan_outs(kinds.num_hops(each.teacher))).times(settings.cluster.micro_batches)
            costs.append(sampled_teacher_step(each, sizes, of_teacher))
        else:
            costs.append(full_teacher_step(each, sizes))
    steps = {"teacher": max(costs, key=lambda cost: cost.multiply_adds)} if costs else {}  # of an ensemble the dearest
    if sampled:
        of_student = blocks(student_seeds(settings, sizes), fan_outs(kinds.student_hops(settings.student)))
        return {**steps, "student": sampled_student_step(settings, sizes, of_student)}
    return {**steps, "student": full_student_step(settings, sizes)}


def labelling_costs(settings: Settings, sizes: Sizes) -> dict[str, StepCosts]:
    """Costs of ranking all users, and of an epoch of labels or of all labels by user, for one of `cluster.num_labelers` processes.

    Of a teacher that scores histories this is still what it takes at least: its sums are left out.
    """
    if not sizes.taught or settings.distill.regime == "inline":
        return {}
    labelers, policy = settings.cluster.num_labelers, candidate_policy(settings.distill)
    final = kinds.final_dim(settings.teacher, sizes)
    dim = final + len(sizes.dims) * kinds.modal_dim(settings.teacher, sizes)
    costs = {}
    if rankings_bytes(settings, sizes):
        products = sizes.users * sizes.items * final
        costs["rank"] = _costs({}, (products / labelers, products * FLOAT / USERS_A_BLOCK / labelers))
    if settings.labels.by == "users":
        scored = sizes.users * settings.labels.pool + sizes.edges
    else:
        scored = sizes.edges * (1 + policy.num_candidates - policy.num_ranked)
    costs["label"] = _costs({}, (scored * dim / labelers, 3 * scored * dim * FLOAT / labelers))  # gathered, and multiplied
    return costs


def raw_row_ratios(settings: Settings, dataset: Dataset) -> dict[str, float]:
    """Ratios d_m / 2d by modality: how many times as much raw rows would send as d-sized rows with gradients, at equal precision.

    d is that of the teacher or component that is trained from features, of several the largest; there are no ratios without one.
    """
    dims = [each.dim for each in kinds.components(settings.teacher) if each.reads_features and kinds.takes_steps(each)]
    if not dims:
        return {}
    return {m: info.dim / (2 * max(dims)) for m, info in dataset.modalities.items()}
