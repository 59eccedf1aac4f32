"""The trials of `tune`: cells that are trained one after the other within a budget of seconds, and found again by a later command."""

import dataclasses
from dataclasses import dataclass, field
from statistics import median

import numpy as np

from ...core.config import as_dict
from ...core.errors import InputError
from ...core.metric_names import split_metric
from ...core.metrics import is_of_users
from ...core.ranking import metric_of_each_user
from ...core.statistics import mean_difference
from ...core.storage import JsonObject, exists, join, read_bytes, write_bytes
from ...graph_store.dataset import Dataset, masks
from ..experiments.cells import Cell, digest_of, finished_cell, run_cell, trained_model
from ..runs.lineage import student_inputs, teacher_inputs
from ..settings import Settings, build, walk

SURE = 1.5  # a trial begins where so many times the median of the last trials of its stage fits what is left of the budget
LAST = 5
SECTIONS = frozenset(name.rsplit(".", depth)[0] for name, _, _ in walk() for depth in range(1, name.count(".") + 1))


def changed(settings: Settings, changes: JsonObject) -> Settings:
    """Returns settings with others over them.

    Args:
        settings: The settings.
        changes: Dotted settings.

    Raises:
        InputError: the changes exclude each other or something in the settings.
    """
    values = as_dict(settings)
    for name, value in changes.items():
        *path, last = name.split(".")
        section = values
        for part in path:
            section = section[part]
        section[last] = value
    return build(Settings, values)


def flat(values: JsonObject, prefix: str = "") -> JsonObject:
    """Returns a tree of settings by dotted name; a dictionary that is a setting itself stays whole.

    Args:
        values: The tree.
        prefix: What its names begin with.
    """
    found: JsonObject = {}
    for key, value in values.items():
        name = f"{prefix}{key}"
        found |= flat(value, f"{name}.") if name in SECTIONS else {name: value}
    return found


@dataclass(frozen=True)
class Trial:
    """A finished trial.

    Attributes:
        name: Its name, and that of its folder.
        stage: "teacher" or "student".
        settings: The settings that it was trained with, as a run would have them.
        digest: Checksum of everything that decided its result.
        value: The validation metric; None where its training failed.
        seconds: What its training took.
        of_users: The metric of each user with validation items, float64 [n]; None where training failed, or the metric has no value for a
            single user.
    """

    name: str
    stage: str
    settings: Settings
    digest: str
    value: float | None
    seconds: float
    of_users: np.ndarray | None = None

    def lead(self, other: "Trial") -> tuple[float, float]:
        """Computes by how much the validation metric is above another trial's, and the standard error of that, paired over users.

        The lead is minus infinity where this trial failed, and the error is 0 where the metric has no value for a single user.
        """
        if self.value is None or other.value is None:
            return float("-inf"), 0.0
        if self.of_users is None or other.of_users is None:
            return self.value - other.value, 0.0
        return mean_difference(self.of_users, other.of_users)


@dataclass
class Trials:
    """Runs trials, and counts what they took.

    Attributes:
        settings: Of the command.
        dataset: The run's, without its test split.
        spent: Seconds of all trials so far, those of earlier commands included.
        finished: All trials so far, by name.
    """

    settings: Settings
    dataset: Dataset
    spent: float = 0.0
    finished: dict[str, Trial] = field(default_factory=dict)
    _seconds: dict[str, list[float]] = field(default_factory=dict)

    @property
    def metric(self) -> str:
        """The validation metric that chooses."""
        return self.settings.evaluation.select_by

    def url(self, name: str) -> str:
        """Returns the folder of a trial."""
        return join(self.settings.dir, "tuning", name)

    def fits(self, stage: str, limit: float) -> bool:
        """Whether another trial of a stage is likely to end before `limit` seconds are spent; the first one of a stage always begins."""
        before = self._seconds.get(stage, [])
        return not before or self.spent + SURE * median(before[-LAST:]) <= limit

    def run(self, name: str, stage: str, settings: Settings, teacher: Trial | None = None) -> Trial:
        """Trains a trial, unless an earlier command has.

        Args:
            name: Its name.
            stage: "teacher" or "student".
            settings: Of the run, as the trial has them.
            teacher: The trial whose teacher a student learns from.
        """
        run = dataclasses.replace(settings.run, dir=self.url(name), redo=None)
        threads = settings.cluster.worker_threads
        cluster = dataclasses.replace(settings.cluster, engine="full", executor="local", address=None, num_workers=1, threads=threads)
        own = dataclasses.replace(settings, run=run, cluster=cluster)
        made_with = self._made_with(stage, own, teacher)
        cell = Cell(name, stage, own, join(self.settings.dir, "dataset"), None if teacher is None else self.url(teacher.name), made_with)
        value, seconds, of_users = None, 0.0, None
        try:
            record = finished_cell(cell) or run_cell(cell)
            assert record.result is not None
            value, seconds = record.result.validation[self.metric], record.result.seconds
            of_users = self._of_users(cell)
            self._seconds.setdefault(stage, []).append(seconds)
            self.spent += seconds
            print(f"[tune] {name}: validation {self.metric} {value:.4f}, {seconds:.0f} s, {self.spent:.0f} s in all", flush=True)
        except (FloatingPointError, InputError) as error:  # settings under which this catalog cannot be learnt
            print(f"[tune] {name}: left out: {error}", flush=True)
        self.finished[name] = Trial(name, stage, settings, digest_of(made_with), value, seconds, of_users)
        return self.finished[name]

    def _of_users(self, cell: Cell) -> np.ndarray | None:
        """Reads or computes the validation metric of each user of a finished trial; None where a single user has no value of it."""
        from safetensors.numpy import load, save

        if not is_of_users(split_metric(self.metric)[0]):
            return None
        url = join(cell.url, "validation.safetensors")
        if not exists(url):
            cluster, evaluation = cell.settings.cluster, cell.settings.evaluation
            model = trained_model(cell.stage, cell.url, self.dataset, cluster.cache_dir)
            held_out, train = masks(self.dataset, "validation")
            of_users = metric_of_each_user(self.metric, model.users, model.items, held_out, train, evaluation.memory_mib, model.histories)
            write_bytes(url, save({"of_users": of_users.numpy()}))
        return load(read_bytes(url))["of_users"]

    def _made_with(self, stage: str, settings: Settings, teacher: Trial | None) -> JsonObject:
        """Returns everything that decides a trial's result."""
        if stage == "teacher":
            return teacher_inputs(settings, self.dataset)
        lineage = {"dataset": self.dataset.digest, **({} if teacher is None else {"teacher": teacher.digest})}
        return student_inputs(settings, self.dataset, True, lineage)
