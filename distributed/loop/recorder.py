"""Reports a training stage to people: a line for every epoch, metrics.jsonl and trackers."""

import json
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from ...core.storage import join, write_bytes
from .trackers import TRACKERS, Row, Tracker

LINE_SECONDS = 15.0  # the shortest time between two lines within an epoch


def print_line(line: str) -> None:
    """Prints a line and flushes it at once."""
    print(line, flush=True)


@dataclass
class Recorder:
    """Records the history of a stage, on rank 0.

    Attributes:
        url: The stage's folder, which holds metrics.jsonl.
        stage: The stage's name, which begins every line.
        show: Shows a line to the person who started the run.
        trackers: Names of the trackers that get every epoch's row.
        history: The rows of all epochs so far.
    """

    url: str
    stage: str
    show: Callable[[str], None] = print_line
    trackers: Sequence[str] = ()
    history: list[Row] = field(default_factory=list)
    _started: list[Tracker] | None = None
    _said: float = 0.0

    def say(self, text: str) -> None:
        """Shows one line, with the stage's name before the text."""
        self.show(f"[{self.stage}] {text}")

    def say_within_epoch(self, epoch: int, step: int, num_steps: int, started: float) -> None:
        """Shows the rate and the remaining time of the epoch, at most every `LINE_SECONDS` seconds.

        Args:
            epoch: The epoch.
            step: The number of steps done.
            num_steps: The number of steps in the epoch.
            started: The time when the epoch began, by `time.monotonic`.
        """
        now = time.monotonic()
        self._said = max(self._said, started)
        if now - self._said >= LINE_SECONDS and step < num_steps:
            self._said = now
            rate = step / (now - started)
            self.say(f"epoch {epoch}: step {step}/{num_steps}, {rate:.1f} steps/s, {(num_steps - step) / rate:.0f} s left in the epoch")

    def record(self, row: Row) -> None:
        """Adds an epoch's row to the history, rewrites metrics.jsonl, and hands the row to the trackers."""
        self.history.append(row)
        write_bytes(join(self.url, "metrics.jsonl"), "".join(json.dumps(r) + "\n" for r in self.history).encode())
        if self._started is None:
            self._started = [TRACKERS.get(name)() for name in self.trackers]
            for tracker in self._started:
                tracker.start(self.url, self.stage)
        for tracker in self._started:
            tracker.record(row)

    def close(self) -> None:
        """Ends the trackers; a further row starts them again."""
        started, self._started = self._started, None
        for tracker in started or []:
            tracker.close()
