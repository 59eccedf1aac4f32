"""Bytes that a worker sends in a step, and how long a step takes at least.

Bytes are expectations, of one worker on average. A step takes at least as long as its multiply-adds at the worker's rate, its bytes at
the memory's bandwidth and what it sends at the network's, whichever is largest: all three may overlap.
"""

import itertools
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from ..core.teacher import num_hops
from ..distributed.config import ClusterConfig
from ..graph_store.dataset import Dataset
from .block_sizes import BlockSizes
from .needs import FLOAT, INDEX, Sizes, candidates_of, row_widths, student_hops, tower_parameters
from .settings import Settings

RATE_BYTES = 1 << 26
RATE_SIZE = 768
RATE_REPEATS = 5


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


@dataclass(frozen=True)
class Rates:
    """A worker's memory bandwidth (bytes a second), multiply-adds a second, and its host's network (bytes a second)."""

    memory: float
    compute: float
    network: float

    @staticmethod
    def of(cluster: ClusterConfig) -> "Rates":
        """As configured; what is not is measured here, with as many threads as a worker has."""
        threads = torch.get_num_threads()
        torch.set_num_threads(cluster.worker_threads)
        try:
            memory = cluster.memory_rate * 1e9 if cluster.memory_rate else _memory_rate()
            compute = cluster.compute_rate * 1e9 if cluster.compute_rate else _compute_rate()
        finally:
            torch.set_num_threads(threads)
        return Rates(memory, compute, cluster.network_rate * 1e9 / 8)

    def bounds(self, costs: StepCosts) -> dict[str, float]:
        """Seconds that a step takes at least, by what limits it."""
        return {
            "multiply-adds": costs.multiply_adds / self.compute,
            "memory": costs.moved / self.memory,
            "network": sum(costs.sent.values()) / self.network,
        }


def seconds_of(work: Callable[[], Any], repeats: int) -> list[float]:
    """Wall-clock seconds of each of some calls, after one that is not counted."""
    work()
    seconds = []
    for _ in range(repeats):
        started = time.perf_counter()
        work()
        seconds.append(time.perf_counter() - started)
    return seconds


def _memory_rate() -> float:
    source = torch.zeros(RATE_BYTES // FLOAT)
    target = torch.empty_like(source)
    return 2 * RATE_BYTES / min(seconds_of(lambda: target.copy_(source), RATE_REPEATS))


def _compute_rate() -> float:
    x = torch.ones(RATE_SIZE, RATE_SIZE)
    return RATE_SIZE**3 / min(seconds_of(lambda: x @ x, RATE_REPEATS))


def reduced_everywhere(parameters: int, workers: int, stage: int = 0) -> int:
    """Bytes that a worker sends so that gradients are averaged and weights are whole: a ring, twice (with ZeRO 3 three times) around."""
    return int((3 if stage == 3 else 2) * (workers - 1) / workers * parameters * FLOAT)


def _reduction_work(settings: Settings, sizes: Sizes, rows: float) -> tuple[float, float]:
    """Multiply-adds and bytes of the reduction of some items: forward, and backward without the gradient of the raw features."""
    adds = moved = 0.0
    for dim in sizes.dims.values():
        inner = [dim, *settings.teacher.hidden, settings.teacher.dim]
        adds += rows * (2 * inner[0] * inner[1] + 3 * sum(a * b for a, b in itertools.pairwise(inner[1:])))
        moved += rows * (2 * dim + 2 * sum(inner[1:])) * FLOAT
    return adds, moved


def _propagation_work(edges: float, rows: float, dim: int) -> tuple[float, float]:
    """Of sums over edges into rows, forward and backward: each edge reads a row and its index and weight."""
    return 2 * edges * dim, 2 * (edges * (dim * FLOAT + INDEX + FLOAT) + rows * dim * FLOAT)


def _costs(sent: dict[str, float], *work: tuple[float, float]) -> StepCosts:
    whole = {name: int(size) for name, size in sent.items() if int(size)}
    return StepCosts(whole, int(sum(adds for adds, _ in work)), int(sum(moved for _, moved in work)))


def _adam(parameters: float) -> tuple[float, float]:
    """Adam reads weight, gradient and two moments, and writes all but the gradient."""
    return 0.0, 7 * parameters * FLOAT


def full_teacher_step(settings: Settings, sizes: Sizes) -> StepCosts:
    """All items are reduced by their owners and gathered whole; ID tables are replicated.

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
    propagation = 2 * config.graph_layers + (0 if config.is_baseline else count * max(1, 2 * config.modality_layers))
    return _costs(
        sent,
        _reduction_work(settings, sizes, sizes.items / workers),
        _propagation_work(propagation * sizes.edges, propagation * sizes.nodes / 2, config.dim),
        _adam(tables + parameters),
    )


def full_student_step(settings: Settings, sizes: Sizes) -> StepCosts:
    """Tables are replicated."""
    config, workers = settings.student, settings.cluster.num_workers
    tables, hops = sizes.nodes * config.dim, student_hops(settings)
    scores = config.train.batch_size / workers * candidates_of(settings, sizes) * config.dim
    return _costs(
        {"gradients of replicated weights": reduced_everywhere(tables + _maps(settings, sizes), workers)},
        _propagation_work(2 * hops * sizes.edges, hops * sizes.nodes, config.dim),
        (3 * scores, 2 * scores * FLOAT),
        _adam(tables),
    )


def _maps(settings: Settings, sizes: Sizes) -> int:
    """Parameters of the student's maps and decoders."""
    student, teacher = settings.student, settings.teacher
    maps = student.layers * (student.dim + 1) * student.dim if student.kind == "gcn" else 0
    decoded = settings.distill.use_teacher and (settings.distill.decoder or student.dim != teacher.dim)
    return maps + (len(sizes.dims) * student.dim * teacher.dim if decoded else 0)


def _exchange(settings: Settings, blocks: BlockSizes, width: float, floats: float) -> dict[str, float]:
    """Sent by a worker for rows that others own: a place each, and d-sized rows and gradients for those who ask it for as many.

    Args:
        width: Rows asked for.
        floats: In the answers.
    """
    others = (settings.cluster.num_workers - 1) / settings.cluster.num_workers
    remote = (settings.graph.num_parts - 1) / settings.graph.num_parts
    return {
        "ids": others * width * INDEX,
        "rows": others * floats * FLOAT,
        "gradients of rows": others * floats * FLOAT,
        "neighbours": remote * (2 * INDEX * blocks.asked + 2 * FLOAT * blocks.edges),  # asked of the servers, and answered by them
    }


def sampled_teacher_step(settings: Settings, sizes: Sizes, blocks: BlockSizes) -> StepCosts:
    """Owners reduce what is asked for; d-sized rows travel, and their gradients."""
    config, workers = settings.teacher, settings.cluster.num_workers
    of_user, of_item = row_widths(settings, sizes)
    items = blocks.items + blocks.further_items
    floats = (blocks.users * of_user + items * of_item) * config.dim
    parameters = tower_parameters(config, list(sizes.dims.values()))
    sent = _exchange(settings, blocks, blocks.users + items, floats)
    sent["gradients of replicated weights"] = reduced_everywhere(parameters, workers, settings.cluster.zero_stage)
    sums = blocks.edges * (config.layers + len(sizes.dims) * max(0.5, config.modality_layers)) / num_hops(config)
    return _costs(
        sent,
        _reduction_work(settings, sizes, items / workers),  # at least: workers ask an owner for the same rows in part
        _propagation_work(sums, blocks.asked, config.dim),
        _adam((blocks.users + items) / workers * config.dim + parameters),
    )


def sampled_student_step(settings: Settings, sizes: Sizes, blocks: BlockSizes) -> StepCosts:
    """Rows of the ID tables travel, and their gradients."""
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


def raw_row_ratios(settings: Settings, dataset: Dataset) -> dict[str, float]:
    """d_m / 2d by modality: how many times as much raw rows would send as d-sized rows and their gradients, at equal precision."""
    return {m: info.dim / (2 * settings.teacher.dim) for m, info in dataset.modalities.items()}
