"""What a training stage tells people: one line an epoch, metrics.jsonl, TensorBoard events and the choice of the best epoch."""

import json
import math
import shutil
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import ray

from ..core.storage import filesystem, is_local, join, local_path, write_bytes


@ray.remote(num_cpus=0)
class ProgressLines:
    """Carries lines from workers to the driver, which prints them."""

    def __init__(self) -> None:
        self.lines: list[str] = []
        self.started = False
        self.failure: str | None = None

    def reset(self) -> None:
        """Forgets an earlier fit."""
        self.started, self.failure = False, None

    def fail(self, message: str) -> None:
        """Notes an error that a restart cannot mend."""
        self.failure = message

    def failed(self) -> str | None:
        """The message of such an error, or None."""
        return self.failure

    def start(self) -> None:
        """Notes that workers have their resources and run."""
        self.started = True

    def has_started(self) -> bool:
        """Whether any worker runs."""
        return self.started

    def add(self, line: str) -> None:
        """Queues a line."""
        self.lines.append(line)

    def drain(self) -> list[str]:
        """The lines since the last call."""
        lines, self.lines = self.lines, []
        return lines


@dataclass
class Selection:
    """The best epoch so far by the validation metric; without a validation split every epoch counts as better than the last.

    Attributes:
        metric: "recall@20" or another, None without a validation split.
        patience: Evaluations without improvement before `should_stop`.
        revision: Of the labels that the epochs since the last reset have seen.
    """

    metric: str | None
    patience: int
    best_value: float = -math.inf
    best_epoch: int = -1
    num_bad: int = 0
    revision: int = 0

    def start_round(self, revision: int) -> None:
        """Gives a new round of labels the full patience; nothing where the round goes on after an interruption."""
        if revision != self.revision:
            self.revision, self.num_bad = revision, 0

    def observe(self, epoch: int, metrics: dict[str, float] | None) -> bool:
        """Takes an evaluation; returns whether this epoch is the best so far."""
        value = metrics[self.metric] if self.metric and metrics else math.inf
        if self.metric is None or value > self.best_value:
            self.best_value, self.best_epoch, self.num_bad = value, epoch, 0
            return True
        self.num_bad += 1
        return False

    @property
    def should_stop(self) -> bool:
        return self.metric is not None and self.num_bad >= self.patience

    def state(self) -> dict:
        best = self.best_value if math.isfinite(self.best_value) else None
        return {"best_value": best, "best_epoch": self.best_epoch, "num_bad": self.num_bad, "revision": self.revision}

    def restore(self, state: dict) -> None:
        best = state["best_value"]
        self.best_value = best if best is not None else (-math.inf if self.metric else math.inf)
        self.best_epoch, self.num_bad, self.revision = state["best_epoch"], state["num_bad"], state["revision"]


@dataclass
class Recorder:
    """History of a stage on rank 0.

    Attributes:
        url: Folder for metrics.jsonl and tensorboard/.
        stage: Name shown in front of each line.
        lines: The `ProgressLines` actor, or None to print.
    """

    url: str
    stage: str
    lines: Any = None
    history: list[dict] = field(default_factory=list)
    _writer: Any = None
    _events: Path | None = None
    _said: float = 0.0

    def say(self, text: str) -> None:
        """Shows one line to the person who started the run."""
        line = f"[{self.stage}] {text}"
        if self.lines is None:
            print(line, flush=True)
        else:
            self.lines.add.remote(line)

    def say_within_epoch(self, epoch: int, step: int, num_steps: int, started: float, every_seconds: float = 15.0) -> None:
        """A line with rate and remaining time for the epoch, at most every few seconds."""
        now = time.monotonic()
        self._said = max(self._said, started)
        if now - self._said >= every_seconds and step < num_steps:
            self._said = now
            rate = step / (now - started)
            self.say(f"epoch {epoch}: step {step}/{num_steps}, {rate:.1f} steps/s, {(num_steps - step) / rate:.0f} s left in the epoch")

    def record(self, row: dict) -> None:
        """Adds an epoch's row, rewrites metrics.jsonl and adds TensorBoard events."""
        self.history.append(row)
        write_bytes(join(self.url, "metrics.jsonl"), "".join(json.dumps(r) + "\n" for r in self.history).encode())
        if self._writer is None:
            from tensorboardX import SummaryWriter

            local = is_local(self.url)
            self._events = local_path(join(self.url, "tensorboard")) if local else Path(tempfile.mkdtemp(prefix="promptmm-events-"))
            self._writer = SummaryWriter(str(self._events), purge_step=row["epoch"])
        for name, value in row.items():
            if isinstance(value, int | float) and name != "epoch":
                self._writer.add_scalar(f"{self.stage}/{name}", value, row["epoch"])
        self._writer.flush()

    def close(self) -> None:
        """Closes the event file, and uploads it where the run's folder is remote."""
        if self._writer is None:
            return
        self._writer.close()
        if not is_local(self.url):
            fs, path = filesystem(join(self.url, "tensorboard"))
            assert self._events is not None
            for file in self._events.iterdir():
                fs.put_file(str(file), f"{path}/{file.name}")
            shutil.rmtree(self._events)
