"""A trainer of the epoch loop in pure Python, and stages of it in real folders."""

from collections.abc import Callable, Generator
from dataclasses import dataclass, field

import pytest
import torch
from promptmm.core.config import OptimizerConfig
from promptmm.distributed.loop.stage import Stage
from promptmm.distributed.worker import Worker


class Interrupted(Exception):
    """The end of a process."""


@dataclass(frozen=True)
class Share:
    """A step of an epoch."""

    step: int
    size: int


@dataclass
class Trainer:
    """Its weights are the epochs that it has been trained on; its validation metric is scripted by epoch.

    Attributes:
        script: "recall@20" by epoch; None without a validation split.
        start_value: "recall@20" of the weights before the first step.
        interrupt_at: (epoch, step) before which it is interrupted; the step `num_steps` is after the last one.
        calls: The calls that a test looks at, in order.
    """

    script: list[float] | None
    interrupt_at: tuple[int, int] | None = None
    start_value: float = 0.0
    num_examples: int = 25
    num_steps: int = 3
    worker: Worker = Worker(0, 1, torch.device("cpu"), ("here",))
    trained: list[int] = field(default_factory=list)
    best: list[int] = field(default_factory=list)
    calls: list[tuple] = field(default_factory=list)

    def open(self, epochs: range) -> None:
        self.calls.append(("open", epochs))

    def close(self) -> None:
        self.calls.append(("close",))

    def start_epoch(self, epoch: int) -> None:
        self.calls.append(("start", epoch))

    def batches(self, epoch: int) -> Generator[Share, None, None]:
        try:
            for step in range(self.num_steps):
                yield Share(step, 10 if step < 2 else 5)
        finally:
            self.calls.append(("batches closed", epoch))

    def train_step(self, batch: Share, epoch: int) -> dict[str, torch.Tensor]:
        if self.interrupt_at == (epoch, batch.step):
            raise Interrupted
        return {"bpr": torch.tensor(1.0 / (1 + epoch) + batch.step), "l2": torch.tensor(0.5)}

    def end_epoch(self) -> dict[str, float]:
        epoch = self.calls[-2][1]
        if self.interrupt_at == (epoch, self.num_steps):
            raise Interrupted
        self.trained.append(epoch)
        return {"revision": 0}

    def validate(self) -> dict[str, float] | None:
        if not self.trained:
            self.calls.append(("validate the start", self.start_value))
            return None if self.script is None else {"recall@20": self.start_value, "ndcg@20": -1.0}
        self.calls.append(("validate", self.trained[-1]))
        if self.script is None:
            return None
        return {"recall@20": self.script[self.trained[-1]], "ndcg@20": -1.0}

    def keep(self) -> None:
        self.best = list(self.trained)

    def save(self, checkpoints, epochs, facts) -> None:
        self.calls.append(("save", epochs))
        checkpoints.save(epochs, {"trained": torch.tensor(self.trained), "best": torch.tensor(self.best)}, facts)

    def load(self, checkpoints):
        newest = checkpoints.latest()
        if newest is None:
            self.keep()
            return None
        tensors, facts = newest
        self.trained, self.best = tensors["trained"].tolist(), tensors["best"].tolist()
        return facts

    def of(self, what: str) -> list:
        """The arguments of all calls of a kind."""
        return [call[1] for call in self.calls if call[0] == what]


@pytest.fixture
def make_trainer() -> type[Trainer]:
    """The class of the trainers."""
    return Trainer


@pytest.fixture
def interrupted() -> type[Interrupted]:
    """What an interrupted trainer raises."""
    return Interrupted


@pytest.fixture
def make_stage(tmp_path) -> Callable[..., Stage]:
    """Makes a stage as a new process would: it finds what others left in the run's folder."""

    def make(run="run", select_by="recall@20", trackers=(), show=lambda line: None, ends_early=False, **config) -> Stage:
        return Stage("student", str(tmp_path / run), OptimizerConfig(**config), select_by, show, trackers, ends_early=ends_early)

    return make
