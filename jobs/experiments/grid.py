"""The cells of an experiment on one catalog, its searches, and both over several catalogs."""

import itertools
from collections.abc import Sequence
from dataclasses import asdict
from typing import TypeVar

from ...core.storage import JsonObject, join, write_json
from ...distributed.execution.lines import start_progress
from ...graph_store.dataset import Dataset
from .cells import Cell, digest_of
from .config import SearchConfig
from .crew import Crew, Progress
from .document import Budget
from .models import Choices, Models, what_decides
from .records import SearchResult, read_cell
from .search import choose, draw_points, run_trials

T = TypeVar("T")


class Grid:
    """The cells of an experiment on one catalog, with the settings that its searches have chosen so far.

    Args:
        models: The models.
        dataset: The catalog's.
        crew: Who trains cells; None: one of its own.

    Attributes:
        choices: Settings chosen by searches, by model.
        searches: What they found, by model.
        points: Dotted settings of every trial, by searched model.
    """

    def __init__(self, models: Models, dataset: Dataset, crew: Crew | None = None) -> None:
        self.models, self.dataset = models, dataset
        self.crew = Crew(Progress(models.recipe.metric), start_progress()) if crew is None else crew
        self.choices: Choices = {}
        self.searches: dict[str, SearchResult] = {}
        config, self.progress = models.recipe.config, self.crew.progress
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
        return self._cell(name, seed, self.models.cell_url(name, seed), self._label(f"{name}, seed {seed}"), {}, True)

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

    def _label(self, text: str) -> str:
        return self.models.recipe.label(text)

    def depth(self, name: str) -> int:
        """Counts the models that a model builds on."""
        model = self.models[name]
        return max((self.depth(other) + 1 for other in (model.of, model.teacher) if other), default=0)

    def teachers_of_trials(self, name: str) -> list[Cell]:
        """Makes the cells of the teacher that a model's trials learn from, at the search's seeds; none where there is no such teacher."""
        teacher = self.models.teacher_of(name, self.models.settings(name, 0, self.choices))
        return [self.cell(teacher, seed) for seed in self._search(name).seeds] if teacher else []

    def trials(self, name: str) -> list[list[Cell]]:
        """Makes the cells of a search, by point and seed."""
        return [
            [
                self._cell(name, seed, self._trial_url(name, at, seed), self._label(f"{name}, trial {at}, seed {seed}"), point, False)
                for seed in self._search(name).seeds
            ]
            for at, point in enumerate(self.points[name])
        ]

    def note_points(self, name: str) -> None:
        """Writes the points of a search to trials.json."""
        write_json(join(self.search_url(name), "trials.json"), {"trials": self.points[name]})

    def search_url(self, name: str) -> str:
        """Names the folder of a search."""
        return join(self._run_dir, "search", self.models[name].folder)

    def choose(self, name: str, trials: list[list[Cell]]) -> None:
        """Chooses a model's settings from its finished trials.

        Raises:
            RunError: all of them failed.
        """
        label = self._label(name)
        best = self.searches[name] = choose(label, self.points[name], trials, self.models.recipe.metric)
        self.choices[name] = best.settings
        shown = ", ".join(f"{key}={value}" for key, value in best.settings.items())
        print(f"[experiment] search of {label}: {shown} (validation {best.metric} {best.value:.4f}, trial {best.trial})", flush=True)

    def note_choices(self) -> None:
        """Writes what all searches chose to choices.json."""
        if self.searches:
            write_json(join(self._run_dir, "choices.json"), {name: asdict(result) for name, result in self.searches.items()})

    def budget(self, name: str) -> Budget:
        """Sums what the search of a model took: trials, seeds of each, and seconds of those that ended with a result."""
        search = self.models.recipe.config.search.get(name)
        if search is None:
            return {"trials": 0, "seeds": 0, "seconds": 0.0}
        records = [read_cell(self._trial_url(name, at, seed)) for at in range(len(self.points[name])) for seed in search.seeds]
        seconds = sum(record.result.seconds for record in records if record is not None and record.result is not None)
        return {"trials": len(self.points[name]), "seeds": len(search.seeds), "seconds": seconds}

    def _search(self, name: str) -> SearchConfig:
        return self.models.recipe.config.search[name]


def search_all(grids: Sequence[Grid]) -> None:
    """Chooses the settings of every searched model of every catalog on validation, and writes them to each choices.json.

    A student's trials learn from its teacher's cells, and a variant starts from what was chosen for its model: those come first. The
    trials of one model on all catalogs run beside each other, mixed.

    Raises:
        RunError: processes of trials failed, or all trials of a search.
    """
    depths = {name: grid.depth(name) for grid in grids for name in grid.points}
    crew = grids[0].crew
    for name in sorted(depths, key=lambda name: depths[name]):
        having = [grid for grid in grids if name in grid.points]
        if teachers := interleaved([grid.teachers_of_trials(name) for grid in having]):
            crew.train(teachers)
        trials = [grid.trials(name) for grid in having]
        for grid in having:
            grid.note_points(name)
        cells = interleaved([[cell for of_point in of_grid for cell in of_point] for of_grid in trials])
        crew.progress.expect(cells)
        run_trials(cells, join(having[0].search_url(name), "ray"), crew.progress.ended, crew.lines)
        for grid, of_grid in zip(having, trials):
            grid.choose(name, of_grid)
    for grid in grids:
        grid.note_choices()


def interleaved(lists: Sequence[Sequence[T]]) -> list[T]:
    """Takes one entry of each list after another, until all are taken."""
    return [entry for row in itertools.zip_longest(*lists) for entry in row if entry is not None]
