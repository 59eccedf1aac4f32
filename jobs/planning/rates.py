"""Rates of a worker: set, or measured where plan runs."""

import time
from collections.abc import Callable
from dataclasses import dataclass

import torch

from ...distributed.config import ClusterConfig
from ...distributed.worker import torch_threads
from .step_costs import StepCosts
from .units import FLOAT

RATE_BYTES = 1 << 26  # copied to measure the memory
RATE_SIZE = 768  # of the square matrices whose product measures multiply-adds
RATE_REPEATS = 5


@dataclass(frozen=True)
class Rates:
    """What a worker can do in a second.

    Attributes:
        memory: Bytes that its memory reads or writes.
        multiply_adds: Multiply-adds in float32.
        network: Bytes that its host's network sends.
    """

    memory: float
    multiply_adds: float
    network: float

    @staticmethod
    def of(cluster: ClusterConfig) -> "Rates":
        """Takes the rates that are set, and measures the others here, with as many threads as a worker has."""
        with torch_threads(cluster.worker_threads):
            memory = cluster.memory_rate * 1e9 if cluster.memory_rate else _memory_rate()
            compute = cluster.compute_rate * 1e9 if cluster.compute_rate else _compute_rate()
        return Rates(memory, compute, cluster.network_rate * 1e9 / 8)

    def bounds(self, costs: StepCosts) -> dict[str, float]:
        """Seconds that a step takes at least, by what limits it: all three may overlap, so that the largest counts."""
        return {
            "multiply-adds": costs.multiply_adds / self.multiply_adds,
            "memory": costs.moved / self.memory,
            "network": sum(costs.sent.values()) / self.network,
        }


def seconds_of(work: Callable[[], object], repeats: int) -> list[float]:
    """Measures the wall-clock seconds of each of some calls, after one that is not counted."""
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
