"""The trials of `tune`: cells that are trained one after the other within a budget of seconds, and found again by a later command."""

import dataclasses
from dataclasses import dataclass, field
from statistics import median

from ...core.config import as_dict
from ...core.errors import InputError
from ...core.storage import JsonObject, join
from ...graph_store.dataset import Dataset
from ..experiments.cells import Cell, digest_of, finished_cell, run_cell
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
        settings: The settings that it was trained with, as a run would have them.
        digest: Checksum of everything that decided its result.
        value: The validation metric; None where its training failed.
        seconds: What its training took.
    """

    name: str
    settings: Settings
    digest: str
    value: float | None
    seconds: float


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
        value, seconds = None, 0.0
        try:
            record = finished_cell(cell) or run_cell(cell)
            assert record.result is not None
            value, seconds = record.result.validation[self.metric], record.result.seconds
            self._seconds.setdefault(stage, []).append(seconds)
            self.spent += seconds
            print(f"[tune] {name}: validation {self.metric} {value:.4f}, {seconds:.0f} s, {self.spent:.0f} s in all", flush=True)
        except (FloatingPointError, InputError) as error:  # settings under which this catalog cannot be learnt
            print(f"[tune] {name}: left out: {error}", flush=True)
        self.finished[name] = Trial(name, settings, digest_of(made_with), value, seconds)
        return self.finished[name]

    def _made_with(self, stage: str, settings: Settings, teacher: Trial | None) -> JsonObject:
        """Returns everything that decides a trial's result."""
        if stage == "teacher":
            return teacher_inputs(settings, self.dataset)
        lineage = {"dataset": self.dataset.digest, **({} if teacher is None else {"teacher": teacher.digest})}
        return student_inputs(settings, self.dataset, True, lineage)
