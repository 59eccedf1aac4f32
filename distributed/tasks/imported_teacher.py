"""Takes over a teacher that was trained elsewhere (stage 1, `teacher.kind=vectors`): reads its vectors, validates and writes them.

Every worker reads the files of both sides in pieces, and keeps in scratch files what it needs: the users of the shards that it writes,
those whose validation items it ranks, and all items. No worker reads the graph or a feature.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from ...core.sides import ITEMS, SIDE_NAMES, USERS
from ...core.standard_scores import moments_of, score_deviation
from ...core.vector_files import FINAL, VectorFiles
from ...graph_store.dataset import Dataset
from ...graph_store.sources.vector_table import PlacedRows, ScratchRows, place_rows, read_rows
from ..artifacts.output import Output
from ..artifacts.teacher import own_rows, write_teacher
from ..engines.validation import Validation
from ..loop.selection import Selection
from ..loop.trainer import WithoutEpochs
from ..messages import TeacherJob
from ..worker import Worker

CHUNK_ROWS = 1 << 14
USUAL = 0.2, 5.0  # standard deviations of a user's scores that nothing is said of
Show = Callable[[str], None]


class ImportedTrainer(WithoutEpochs):
    """Holds vectors that another model made, as a trainer without epochs; see `loop.trainer.Trainer`.

    Args:
        job: The teacher's job.
        worker: This worker.
        dataset: The dataset that the vectors are of, whose validation split measures them.
        show: Shows a line to the person who started the run.

    Raises:
        InputError: a file is missing, has another form, or does not fit the dataset.
    """

    def __init__(self, job: TeacherJob, worker: Worker, dataset: Dataset, show: Show) -> None:
        self.job, self.worker, self._counts = job, worker, (dataset.num_users, dataset.num_items)
        files = VectorFiles.of(job.config.vectors)
        placed = [place_rows(file, dataset) for file in files.sides]
        if worker.is_first:
            lengths = ", ".join(f"{name} of {dim}" for name, dim in files.dims.items())
            for line in (f"reads vectors ({lengths} columns)", *(each for side in placed for each in side.remarks())):
                show(f"[teacher] {job.config.kind}: {line}")
        self.facts = {f"{SIDE_NAMES[each.file.side]}s": _facts(each) for each in placed}
        self._validation = Validation.of(dataset, worker, None, job.evaluation)
        kept_users = own_rows(dataset.num_users, worker)
        if self._validation is not None:
            kept_users[self._validation.users.cpu()] = True
        users = read_rows(placed[USERS], kept_users)
        items = read_rows(placed[ITEMS], torch.ones(dataset.num_items, dtype=torch.bool))
        remark = _settle_scale(users[FINAL].rows, items[FINAL].rows, job.config.vectors.unit_scores)
        if remark is not None and worker.is_first:
            show(f"[teacher] {job.config.kind}: {remark}")
        self.vectors: dict[str, tuple[ScratchRows, ScratchRows]] = {name: (users[name], items[name]) for name in files.dims}

    def validate(self) -> dict[str, float] | None:
        """Computes the validation metrics; returns None without a validation split."""
        if self._validation is None:
            return None
        users, items = self.vectors[FINAL]

        def user_rows(ids: Tensor) -> Tensor:
            return users.pull(ids.cpu()).to(ids.device)

        return self._validation(user_rows, items.rows.to(self.worker.device))

    def output(self) -> Output:
        """Returns the vectors, of which this worker has those that it writes."""
        return Output(self.worker, *self._counts, {}, None, dict(self.vectors), {}, {})

    def write(self, output: Output, selection: Selection) -> None:
        """Writes the artifact; a collective call."""
        num_parameters = output.vectors[FINAL][USERS].dim * sum(output.counts)
        write_teacher(self.job, output, selection, {}, num_parameters, {"imported": self.facts})


def _settle_scale(users: Tensor, items: Tensor, unit_scores: bool) -> str | None:
    """Scales users' vectors, in place, to scores of the standard deviation 1, if that is asked for.

    Args:
        users: Final vectors of some users, float32 [n, dim], in a scratch file.
        items: Those of all items, float32 [num_items, dim].
        unit_scores: Whether it is asked for.

    Returns:
        A remark on the scale that stays, as a sentence without its end, where it is far from what distillation is made for; None elsewhere.
    """
    _, covariance = moments_of(iter(items.split(CHUNK_ROWS)), items.shape[1])
    deviations = torch.cat([score_deviation(rows, covariance) for rows in users.split(CHUNK_ROWS)]) if len(users) else torch.zeros(0)
    touched = deviations > 0
    if unit_scores:
        for rows, own in zip(users.split(CHUNK_ROWS), torch.where(touched, 1 / deviations, 0.0).float().split(CHUNK_ROWS)):
            rows *= own[:, None]
        return None
    median = float(deviations[touched].median()) if touched.any() else 0.0
    if USUAL[0] <= median <= USUAL[1]:
        return None
    return (
        f"a user's scores have a standard deviation of {median:.2g} in the median, and the temperatures of distillation are made for about "
        "1; teacher.vectors.unit_scores=true scales them, and leaves rankings as they are"
    )


def _facts(placed: PlacedRows) -> dict[str, object]:
    """Returns what the manifest says of a side's file."""
    return {"url": placed.file.url, "rows": len(placed.index), "unknown": placed.unknown, "without_vector": placed.without}
