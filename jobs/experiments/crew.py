"""Trains cells beside each other as Ray tasks, of one catalog or of several, and says how far they are."""

import time
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import ray
from ray.actor import ActorHandle

from ...core.errors import RunError
from .cells import Cell, failure_of, finished_cell, outdated, run_cell, task_options, waiting_for
from .records import CellRecord


@dataclass
class Progress:
    """Progress on the terminal: what ended, how many cells there are, and how long the rest takes at the pace so far.

    Attributes:
        metric: Validation metric that is shown of a cell.
        planned: Folders of all cells and trials.
        done: Those that are finished.
    """

    metric: str
    planned: set[str] = field(default_factory=set)
    done: set[str] = field(default_factory=set)
    _ended_here: int = 0
    _started: float = field(default_factory=time.monotonic)

    def expect(self, cells: Iterable[Cell]) -> None:
        """Takes note of cells, and which of them are finished already."""
        for cell in cells:
            self.planned.add(cell.url)
            if finished_cell(cell) is not None:
                self.done.add(cell.url)

    def ended(self, cell: Cell, record: CellRecord | None, failure: str | None = None) -> None:
        """Says how a cell ended: by its record, or the failure that left none."""
        self.done.add(cell.url)
        self._ended_here += 1
        if record is not None and record.result is not None:
            result = record.result
            text = f"validation {self.metric} {result.validation[self.metric]:.4f} ({result.epochs} epochs, {result.seconds:.0f} s)"
        else:
            text = f"failed: {failure or (record and (record.failed or record.error))}"
        left = (time.monotonic() - self._started) / self._ended_here * len(self.planned - self.done)
        print(f"[experiment] {cell.name}: {text}; {len(self.done)}/{len(self.planned)} cells, {_duration(left)} left", flush=True)


def _duration(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 120 else f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"


@dataclass(frozen=True)
class Crew:
    """Who trains the cells of an experiment.

    Attributes:
        progress: On the terminal.
        lines: The `ProgressLines` actor, which knows whether any cell has started.
    """

    progress: Progress
    lines: ActorHandle

    def train(self, cells: list[Cell]) -> None:
        """Trains the cells that are not done, as many beside each other as the cluster has room for; a student after its teacher.

        Cells start in the order given, so whoever has cells of several catalogs mixes them: no catalog's cells are alone at the end.

        Raises:
            RunError: some failed, raised when all others are done; or a student's teacher is not among the cells.
        """
        self.progress.expect(cells)
        done = {cell.url for cell in cells if finished_cell(cell) is not None}
        waiting = [cell for cell in cells if cell.url not in done]
        known = {None, *(cell.url for cell in cells)}
        if alone := [cell.name for cell in waiting if cell.teacher_url not in known]:
            raise RunError(f"these cells would wait for ever, since their teachers are not among the cells: {', '.join(alone)}")
        for cell in waiting:
            if changed := outdated(cell):
                print(f"[experiment] {cell.name}: trained again, since it was trained with {'; '.join(changed)}", flush=True)
        failures: dict[str, str] = {}
        if waiting:
            with waiting_for(waiting[0], self.lines):
                self._train(waiting, done, failures)
        if failures:
            raise RunError(
                f"{len(failures)} of {len(cells)} cells failed, and nothing is tested before all are done; the others are done, and the "
                "same command trains the failed ones again:\n  " + "\n  ".join(failures.values())
            )

    def _train(self, waiting: list[Cell], done: set[str], failures: dict[str, str]) -> None:
        """Trains cells as their teachers get done; adds to the folders that are done, and to the causes of failures by folder."""
        running: dict[Any, Cell] = {}
        try:
            while waiting or running:
                for cell in [cell for cell in waiting if cell.teacher_url is None or cell.teacher_url in {*done, *failures}]:
                    waiting.remove(cell)
                    if cell.teacher_url in failures:
                        failures[cell.url] = f"{cell.name}: its teacher failed"
                        self.progress.ended(cell, None, "its teacher failed")
                    else:
                        running[ray.remote(run_cell).options(**task_options(cell)).remote(cell, self.lines)] = cell
                if running:  # else those that waited have failed with their teacher
                    (ready,), _ = ray.wait(list(running), num_returns=1)
                    self._end(running.pop(ready), ready, done, failures)
        finally:
            for task in running:
                ray.cancel(task, force=True)

    def _end(self, cell: Cell, task: Any, done: set[str], failures: dict[str, str]) -> None:
        record = failure = None
        try:
            record = ray.get(task)
            done.add(cell.url)
        except ray.exceptions.RayError as error:
            failure = failure_of(error)
            failures[cell.url] = f"{cell.name}: {failure}"
        self.progress.ended(cell, record, failure)
