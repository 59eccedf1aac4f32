"""The cells of an experiment, and who trains them: trials of Ray Tune for searches, Ray tasks for the rest."""

import time
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from typing import Any

import ray

from ...core.errors import RunError
from ...core.storage import JsonObject, join, write_json
from ...distributed.execution.lines import start_progress
from ...graph_store.dataset import Dataset
from .cells import Cell, digest_of, failure_of, finished_cell, outdated, run_cell_task, task_options, waiting_for
from .models import Choices, Models, what_decides
from .records import CellRecord, SearchResult
from .search import choose, draw_points, run_trials
from .settings import SearchConfig


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


class Grid:
    """The cells of an experiment, with the settings that its searches have chosen so far.

    Attributes:
        models: The models.
        dataset: The experiment's.
        choices: Settings chosen by searches, by model.
        searches: What they found, by model.
        progress: On the terminal.
        lines: The `ProgressLines` actor, which knows whether any cell has started.
        points: Dotted settings of every trial, by searched model.
    """

    def __init__(self, models: Models, dataset: Dataset) -> None:
        self.models, self.dataset = models, dataset
        self.choices: Choices = {}
        self.searches: dict[str, SearchResult] = {}
        self.progress, self.lines = Progress(models.recipe.metric), start_progress()
        config = models.recipe.config
        self.progress.planned |= {models.cell_url(name, seed) for name in models.by_name for seed in config.seeds}
        self.points = {name: draw_points(name, search, models.recipe.base.run.seed) for name, search in config.search.items()}
        self.progress.planned |= {
            self._trial_url(name, at, seed)
            for name, points in self.points.items()
            for at in range(len(points))
            for seed in config.search[name].seeds
        }

    @property
    def _run_dir(self) -> str:
        return self.models.recipe.base.dir

    def _trial_url(self, name: str, at: int, seed: int) -> str:
        return join(self._run_dir, "search", self.models[name].folder, f"trial-{at:03d}", f"seed-{seed}")

    def cell(self, name: str, seed: int) -> Cell:
        """Makes the cell of a model at a seed."""
        return self._cell(name, seed, self.models.cell_url(name, seed), f"{name}, seed {seed}", {}, True)

    def _cell(self, name: str, seed: int, url: str, label: str, more: JsonObject, keep: bool) -> Cell:
        model, settings = self.models[name], self.models.settings(name, seed, self.choices, url, more)
        teacher = self.models.teacher_of(name, settings)
        taught_by = self.cell(teacher, seed) if teacher else None
        made_with = {
            "stage": model.stage,
            "seed": seed,
            "dataset": self.dataset.digest,
            "teacher": digest_of(taught_by.made_with) if taught_by else None,
            **what_decides(model.stage, settings),
        }
        dataset_url = join(self._run_dir, "dataset")
        return Cell(label, model.stage, settings, dataset_url, taught_by.url if taught_by else None, made_with, keep)

    def cells(self) -> list[Cell]:
        """Makes the cells of every model at every seed, teachers first, seed by seed."""
        names = sorted(self.models.by_name, key=lambda name: self.models[name].stage != "teacher")
        return [self.cell(name, seed) for seed in self.models.recipe.config.seeds for name in names]

    def search(self) -> None:
        """Chooses the settings of every searched model on validation, and writes them to choices.json.

        A student's trials learn from its teacher's cells, and a variant starts from what was chosen for its model: those come first.
        """
        searches = self.models.recipe.config.search
        for name in sorted(searches, key=self._depth):
            best = self.searches[name] = self._search(name, searches[name])
            self.choices[name] = best.settings
            shown = ", ".join(f"{key}={value}" for key, value in best.settings.items())
            print(f"[experiment] search of {name}: {shown} (validation {best.metric} {best.value:.4f}, trial {best.trial})", flush=True)
        if searches:
            write_json(join(self._run_dir, "choices.json"), {name: asdict(result) for name, result in self.searches.items()})

    def _depth(self, name: str) -> int:
        """Counts the models that a model builds on."""
        model = self.models[name]
        return max((self._depth(other) + 1 for other in (model.of, model.teacher) if other), default=0)

    def _search(self, name: str, search: SearchConfig) -> SearchResult:
        teacher = self.models.teacher_of(name, self.models.settings(name, 0, self.choices))
        if teacher:
            self.train([self.cell(teacher, seed) for seed in search.seeds])
        points, folder = self.points[name], join(self._run_dir, "search", self.models[name].folder)
        cells = [
            [
                self._cell(name, seed, self._trial_url(name, at, seed), f"{name}, trial {at}, seed {seed}", point, False)
                for seed in search.seeds
            ]
            for at, point in enumerate(points)
        ]
        write_json(join(folder, "trials.json"), {"trials": points})
        flat = [cell for of_point in cells for cell in of_point]
        self.progress.expect(flat)
        run_trials(flat, join(folder, "ray"), self.progress.ended, self.lines)
        return choose(name, points, cells, self.models.recipe.metric)

    def train(self, cells: list[Cell]) -> None:
        """Trains the cells that are not done, as many beside each other as the cluster has room for; a student after its teacher.

        Raises:
            RunError: some failed; raised when all others are done.
        """
        self.progress.expect(cells)
        done = {cell.url for cell in cells if finished_cell(cell) is not None}
        waiting = [cell for cell in cells if cell.url not in done]
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
                        running[run_cell_task.options(**task_options(cell)).remote(cell, self.lines)] = cell
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
