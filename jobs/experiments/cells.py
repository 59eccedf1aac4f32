"""A cell of an experiment: one model at one seed, trained in one process that never sees the test split.

cells/<model>/seed-<n>/ (and search/<model>/trial-<t>/seed-<n>/) holds cell.json (what the cell was made with, and its result), the trained
model and its metrics.jsonl. While it trains there are its checkpoints, its labels and a copy of its teacher; they go when it is done.
"""

import contextlib
import hashlib
import json
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING

from torch import Tensor

from ...core.artifact import copy_artifact, has_artifact
from ...core.errors import InputError
from ...core.histories import Histories
from ...core.ranking import evaluate
from ...core.redaction import redacted_tree
from ...core.storage import JsonObject, join, remove
from ...core.top_k import top_k
from ...distributed.artifacts.teacher import revision_url
from ...distributed.execution.local import LocalExecutor
from ...graph_store.dataset import Dataset, open_dataset
from ..runs.compatibility import check_teachable
from ..runs.models import TrainedModel, agreement_of, trained_student, trained_teacher
from ..runs.report import read_history
from ..runs.rounds import run_rounds
from ..runs.stages import differences
from ..runs.worker_jobs import teacher_job
from ..settings import Settings
from .records import CellRecord, CellResult, read_cell, write_cell

if TYPE_CHECKING:
    from ray.actor import ActorHandle

RANKINGS = 3  # full rankings that are timed
TEST = "test"


@dataclass(frozen=True)
class Cell:
    """A model at a seed, as its process is told.

    Attributes:
        name: The model, and what tells the cell from others, in words.
        stage: "teacher" or "student".
        settings: With the cell's folder as `run.dir` and its seed.
        dataset_url: The experiment's dataset.
        teacher_url: Folder of the teacher's cell, None where there is none.
        made_with: Everything that decides the result, as JSON-able values.
        keep: Whether the trained model stays; the record does in any case.
    """

    name: str
    stage: str
    settings: Settings
    dataset_url: str
    teacher_url: str | None
    made_with: JsonObject
    keep: bool = True

    @property
    def url(self) -> str:
        """The cell's folder."""
        return self.settings.dir

    @property
    def digest(self) -> str:
        """Checksum of what it is made with."""
        return digest_of(self.made_with)

    @property
    def threads(self) -> int:
        """torch threads and CPUs of its process."""
        return self.settings.cluster.threads or 1

    @property
    def gpus(self) -> float:
        """GPUs of its process."""
        cluster = self.settings.cluster
        return cluster.gpus_per_cell if cluster.use_gpu else 0


def digest_of(made_with: JsonObject) -> str:
    """Computes the checksum of JSON-able values."""
    return hashlib.sha256(json.dumps(redacted_tree(made_with), sort_keys=True).encode()).hexdigest()


def finished_cell(cell: Cell) -> CellRecord | None:
    """Reads the record of a cell that is done with what it is made with now; None where it is not."""
    record = read_cell(cell.url)
    return record if record is not None and record.done and record.digest == cell.digest else None


def run_cell(cell: Cell, lines: "ActorHandle | None" = None) -> CellRecord:
    """Trains a cell in this process, from its last checkpoint where it was interrupted; returns its record.

    Args:
        cell: The cell.
        lines: A `ProgressLines` actor that waits for cells to start.

    Raises:
        RunError: something asked for the test split.
        FloatingPointError: the loss is not finite.
    """
    if lines is not None:
        lines.start.remote()
    finished = finished_cell(cell)
    if finished is not None:  # its process died after the last word
        return finished
    settings, cluster = cell.settings, cell.settings.cluster
    dataset = open_dataset(cell.dataset_url, cluster.cache_dir).without(TEST)
    executor = LocalExecutor(replace(cluster, threads=cell.threads), cell.url, dataset)
    _begin(cell)
    started = time.monotonic()
    if cell.stage == "teacher":
        check_teachable(settings, dataset)
        executor.run(teacher_job(settings, dataset))
    else:
        if cell.teacher_url is not None:
            copy_teacher(cell.teacher_url, cell.url, cluster.cache_dir)
        run_rounds(settings, dataset, executor, {"dataset": dataset.digest})
    record = CellRecord(cell.digest, cell.made_with, True, _result(cell, dataset, time.monotonic() - started))
    write_cell(cell.url, record)
    for folder in _temporary(cell):
        remove(folder)
    return record


def outdated(cell: Cell) -> list[str]:
    """Lists what a cell was started with that is otherwise now."""
    record = read_cell(cell.url)
    return [] if record is None else differences(record.made_with, cell.made_with)


def _begin(cell: Cell) -> None:
    """Notes what the cell is made with now, and removes what it made with other inputs."""
    if outdated(cell):
        remove(cell.url)
    if read_cell(cell.url) is None:
        write_cell(cell.url, CellRecord(cell.digest, cell.made_with, False))


def copy_teacher(url: str, target: str, cache_dir: str | None) -> None:
    """Copies a cell's teacher beside the student that reads it (and that tunes its prompt, in some regimes).

    Args:
        url: Folder of the teacher's cell.
        target: Folder of the student's cell.
        cache_dir: Folder for local copies of remote artifacts.
    """
    source, copy = join(url, "teacher"), join(target, "teacher")
    if not has_artifact(copy):
        copy_artifact(source, copy, "teacher", cache_dir)
    if not has_artifact(revision_url(copy, 0)):
        copy_artifact(revision_url(source, 0), revision_url(copy, 0), "teacher-vectors", cache_dir)


def trained_model(stage: str, url: str, dataset: Dataset, cache_dir: str | None) -> TrainedModel:
    """Reads the model that a cell trained; `stage` is "teacher" or "student"."""
    return trained_teacher(url, dataset, cache_dir) if stage == "teacher" else trained_student(url, cache_dir)


def _result(cell: Cell, dataset: Dataset, seconds: float) -> CellResult:
    """Validation metrics of the chosen epoch, sizes and times; `seconds` is the time of the training."""
    evaluation, model = cell.settings.evaluation, trained_model(cell.stage, cell.url, dataset, cell.settings.cluster.cache_dir)
    held_out, train = (dataset.csr(split) for split in ("validation", "train"))
    teacher = trained_teacher(cell.url, dataset, cell.settings.cluster.cache_dir) if cell.teacher_url is not None else None

    def validate(users: Tensor, items: Tensor, histories: Histories = ()) -> dict[str, float]:
        cutoffs, further = evaluation.cutoffs, evaluation.metrics
        return evaluate(users, items, held_out, train, cutoffs, evaluation.memory_mib, further=further, histories=histories)

    history, rankings = read_history(cell.url, cell.stage), []
    for _ in range(RANKINGS):
        started = time.monotonic()
        for _ranked in top_k(model.users, model.items, max(evaluation.cutoffs), train, evaluation.memory_mib, model.histories):
            pass
        rankings.append(time.monotonic() - started)
    return CellResult(
        validation=validate(model.users, model.items, model.histories),
        modalities={modality: validate(*vectors) for modality, vectors in model.modal().items()},
        **asdict(model.facts),
        epochs=len(history),
        seconds=seconds,
        seconds_per_epoch=sum(row["seconds"] for row in history) / max(1, len(history)),  # a fitted teacher has no epoch
        ranking_seconds=sorted(rankings)[RANKINGS // 2],
        trials=model.trials,
        agreement=None if teacher is None else agreement_of(teacher, model, train, evaluation),
    )


def _temporary(cell: Cell) -> list[str]:
    """Lists the folders that a cell needs only while it trains."""
    training = join(cell.url, "training", cell.stage)
    names = ["labels", *(["teacher"] if cell.stage == "student" or not cell.keep else [])]
    return [join(training, "checkpoints"), *(join(cell.url, name) for name in names), *([] if cell.keep else [join(training, "model")])]


def failure_of(error: BaseException) -> str:
    """Names the cause of a failed cell, in words."""
    cause = getattr(error, "cause", None) or error
    return f"{type(cause).__name__}: {cause}" if not isinstance(cause, InputError) else str(cause)


@contextlib.contextmanager
def waiting_for(cell: Cell, lines: "ActorHandle") -> Iterator[None]:
    """Waits inside it end with a RunError where the cluster has no room for such a cell within `cluster.start_timeout`."""
    from ...distributed.execution.lines import watching  # needs Ray, which a cell in this process does not

    cluster = cell.settings.cluster
    gpus = f" and {cluster.gpus_per_cell:g} GPUs (cluster.gpus_per_cell)" if cluster.use_gpu else ""
    needs = f"a cell of {cell.threads} CPUs (cluster.threads){gpus}"
    with watching(lines, cluster.start_timeout, needs):
        yield


def task_options(cell: Cell) -> JsonObject:
    """Options of a Ray task that trains or tests a cell: CPUs, GPUs and restarts."""
    return {"num_cpus": cell.threads, "num_gpus": cell.gpus, "max_retries": cell.settings.cluster.max_failures}
