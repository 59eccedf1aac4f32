"""Fits a teacher in closed form in place of training it (stage 1): linear models (docs/method.md 7.1).

In the full engine rank 0 computes. The other workers have the features of their items, and rank their share of the validation users for
every setting that the search tries; at the end all of them have rank 0's vectors. Over sharded rows `engines/sampled/fitted.py` fits.
"""

import time
from collections.abc import Callable, Generator
from typing import Any, ClassVar, cast

import torch
from torch import Tensor

from ...core.histories import Histories, HistoryScores, Similarities
from ...core.linear.base import LinearTeacher
from ...core.linear.fit import LinearFit, LinearInputs
from ...core.rows import RowTables
from ...core.sides import USERS
from ...core.teacher import teacher_kind
from ..artifacts.output import Output
from ..artifacts.teacher import write_teacher
from ..engines.examples import Examples
from ..engines.full.catalog import WholeCatalog
from ..engines.learners import Learner
from ..engines.validation import Validation
from ..engines.view import View
from ..loop.recorder import LINE_SECONDS
from ..loop.selection import Selection
from ..messages import TeacherJob
from ..worker import Worker
from .base import Pair, RowsOf, Task
from .teacher import TeacherBatch

TRIAL_USERS = 5_000  # validation users that choose settings: ranking all of a large catalog's would take longer than fitting
Show = Callable[[str], None]


class FittedTeacherTask(Task[TeacherBatch]):
    """Holds the vectors of a fitted teacher as a task without steps: the stage validates its start, and writes it.

    Args:
        job: The teacher's job.
        worker: This worker.
        catalog: The train graph, and the features of this worker's items where the kind reads them.
        validation: Ranks this worker's share of the validation users; None without a validation split.
        show: Shows a line to the person who started the run.
    """

    stage: ClassVar[str] = "teacher"
    learns_rows = False
    num_hops = 0

    def __init__(self, job: TeacherJob, worker: Worker, catalog: WholeCatalog, validation: Validation | None, show: Show) -> None:
        self.job, self.train, self.seed = job, job.config.train, job.seed
        self.dim, self.init_scale, self.user_balance = 0, 0.0, 0.0
        trials = None if validation is None else validation.sampled(TRIAL_USERS)
        self.fit = _fit(job, worker, catalog, trials, show)
        self.histories = self.fit.histories

    @property
    def vector_dims(self) -> dict[str, int]:
        return {"final": self.fit.users.shape[1]}

    def learners(self, tables: RowTables | None) -> list[Learner]:
        return []

    def initial_rows(self, own_ids: Pair) -> tuple[RowsOf, RowsOf]:
        def nothing(ids: Tensor) -> Tensor:
            return torch.zeros(ids.numel(), 0)

        return nothing, nothing

    def batches(self, examples: Examples, epoch: int, num_parts: int) -> Generator[TeacherBatch, None, None]:
        raise AssertionError("a fitted teacher has no epochs")

    def terms(self, view: View, batch: TeacherBatch) -> dict[str, Tensor]:
        raise AssertionError("a fitted teacher has no loss")

    def vectors(self, view: View) -> dict[str, Pair]:
        return {"final": (self.fit.users, self.fit.items)}

    def write(self, output: Output, selection: Selection) -> None:
        write_fitted(self.job, output, selection, self.fit.facts())


def write_fitted(job: TeacherJob, output: Output, selection: Selection, facts: dict[str, Any]) -> None:
    """Writes the artifact of a fitted teacher; a collective call.

    Args:
        job: The teacher's job.
        output: Its vectors.
        selection: Their metrics on validation.
        facts: What the manifest says of the fit.
    """
    num_parameters = output.vectors["final"][USERS].dim * sum(output.counts)
    num_parameters += sum(part.similarities.values.numel() for part in output.histories)
    write_teacher(job, output, selection, {}, num_parameters, {"linear": facts})


@torch.no_grad()
def _fit(job: TeacherJob, worker: Worker, catalog: WholeCatalog, validation: Validation | None, show: Show) -> LinearFit:
    """Fits the model on rank 0; returns it on every worker; collective."""
    kind = cast(type[LinearTeacher], teacher_kind(job.config))
    features = {m: catalog.gather(rows) for m, rows in catalog.features.items()}
    metric = job.evaluation.select_by
    if not worker.is_first:
        return _follow(worker, catalog, validation)

    values: list[float] = []
    started = said = time.monotonic()

    def score(users: Tensor, items: Tensor, histories: Histories) -> float:
        nonlocal said
        assert validation is not None
        _send(worker, users, items, histories, None)
        values.append(validation(users.__getitem__, items, histories)[metric])
        if time.monotonic() - said >= LINE_SECONDS:
            said = time.monotonic()
            of = f"[teacher] {job.config.kind}: trial {len(values)} of at most {job.config.linear.trials}"
            show(f"{of} has {metric} {values[-1]:.4f} (best {max(values):.4f}), {said - started:.0f} s")
        return values[-1]

    fit = kind.fit(LinearInputs(catalog.graph, features, job.seed), job.config.linear, score if validation is not None else None)
    facts = {"settings": fit.settings, "chosen": fit.chosen, "value": fit.value, "trials": fit.trials}
    _send(worker, fit.users, fit.items, fit.histories, facts)
    how = "" if fit.value is None else f"; chosen on validation in {fit.trials} trials, where {metric} was {fit.value:.4f}"
    show(f"[teacher] {job.config.kind} {summary(fit.settings, _size(fit), time.monotonic() - started, how)}")
    return fit


def _follow(worker: Worker, catalog: WholeCatalog, validation: Validation | None) -> LinearFit:
    """Ranks this worker's share of the validation users for every trial of rank 0, until that sends what it has fitted."""
    while True:
        users, items, histories, facts = _receive(worker, catalog)
        if facts is not None:
            return LinearFit(users, items, **facts, histories=histories)
        assert validation is not None, "rank 0 has a validation split"
        validation(users.__getitem__, items, histories)


def _size(fit: LinearFit) -> str:
    """Returns how large a fitted model is, in words."""
    vectors = columns_in_words(fit.users.shape[1])
    if not fit.histories:
        return vectors
    similarities = f"{sum(part.similarities.values.numel() for part in fit.histories):,} similarities of items"
    return f"{vectors} and {similarities}" if fit.users.shape[1] else similarities


def columns_in_words(columns: int) -> str:
    """Returns the number of a model's columns, in words."""
    return f"vectors of {columns} columns"


def summary(settings: dict[str, Any], size: str, seconds: float, how: str = "") -> str:
    """Returns how a fit went, in words.

    Args:
        settings: What the model was fitted with.
        size: How large it is, in words.
        seconds: That it took.
        how: How settings were chosen, in words.
    """
    named = ", ".join(f"{name}={value}" for name, value in settings.items())
    return f"fitted in {seconds:.1f} s with {named}{how}; {size}"


def _send(worker: Worker, users: Tensor, items: Tensor, histories: Histories, facts: dict | None) -> None:
    """Sends what a model scores with from rank 0 to all workers, with the facts of the finished fit or None."""
    if worker.world_size > 1:
        parts = [(part.weights.cpu(), part.similarities.to("cpu")) for part in histories]
        worker.share((users.shape[1], parts, facts))
        worker.sum_([users, items])


def _receive(worker: Worker, catalog: WholeCatalog) -> tuple[Tensor, Tensor, Histories, dict | None]:
    """Receives what `_send` sends; the histories are those of the train graph."""
    columns, parts, facts = cast(tuple[int, list[tuple[Tensor, Similarities]], dict | None], worker.share(None))
    users, items = (torch.zeros(n, columns, device=worker.device) for n in (catalog.graph.num_users, catalog.graph.num_items))
    worker.sum_([users, items])
    device, train = worker.device, catalog.graph.users
    histories = tuple(HistoryScores(weights.to(device), train, similar.to(device)) for weights, similar in parts)
    return users, items, histories, facts
