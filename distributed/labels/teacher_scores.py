"""Scores candidate lists with the teacher's vectors at one revision, which stay memory-mapped on the CPU."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from ...core.errors import InputError
from ...core.graph import Csr
from ...core.objectives import Labels, labels_of_scores, list_scores
from ...core.sides import ITEMS, USERS
from ...core.vectors import TeacherVectors
from ..artifacts.teacher import final_scores, modal_rows
from ..messages import LabelJob, RankingJob


class TeacherScores:
    """Scores lists of items with a revision's vectors and its similarities of items.

    Args:
        url: The teacher's artifact.
        revision: The prompt's revision.
        train: Returns the train items of all users, on the CPU; called where the teacher scores histories.
        cache_dir: Folder for local copies of remote artifacts.
        by_modality: Whether scores by modality are computed, too.
        device: Where lists are scored, and where the vectors go if it is not the CPU.
    """

    def __init__(
        self,
        url: str,
        revision: int,
        train: Callable[[], Csr],
        cache_dir: str | None = None,
        by_modality: bool = True,
        device: torch.device = torch.device("cpu"),  # noqa: B008 - a value that does not change
    ) -> None:
        self.device = device
        self.final = final_scores(url, revision, train, cache_dir).to(device)
        modal = modal_rows(url, revision, cache_dir) if by_modality else {}
        self.modal_users = {m: sides[USERS].to(device) for m, sides in modal.items()}
        self.items = self.final.rows[ITEMS].whole()
        self.modal_items = {m: sides[ITEMS].to(device).whole() for m, sides in modal.items()}

    @property
    def modalities(self) -> list[str]:
        """Returns the names of the modalities whose scores are computed, in the teacher's order."""
        return list(self.modal_items)

    @property
    def names(self) -> list[str]:
        """Returns what labels call the scorers: `scores` for the final scores, and `scores.<modality>`."""
        return ["scores", *(f"scores.{m}" for m in self.modalities)]

    def scores(self, users: Tensor, lists: Tensor) -> list[Tensor]:
        """Scores lists as `labels` does, by scorer in the order of `names`, without taking a positive's score from them: float32 [n, k].

        Scores are on the device of the lists.
        """
        scores = list_scores(*self._vectors_of(users.to(self.device)), lists.to(self.device))
        return [each.to(lists.device) for each in scores]

    def labels(self, users: Tensor, lists: Tensor, of_last: Sequence[Tensor] = ()) -> Labels:
        """Scores lists relative to their positives. The vectors of the lists' users alone are read from the users' tables.

        Args:
            users: int64 [n], dataset indices.
            lists: int64 [n, 1 + K], the positive first.
            of_last: Scores of each list's last t items that are known already, float32 [n, t] by scorer; these items are not scored again.
        """
        scores = self.scores(users, lists[:, : lists.shape[1] - of_last[0].shape[1]] if of_last else lists)
        if of_last:
            scores = [torch.cat(both, 1) for both in zip(scores, of_last)]
        return labels_of_scores(users, lists, scores)

    def _vectors_of(self, users: Tensor) -> tuple[TeacherVectors, Tensor]:
        """Returns the vectors of the distinct users and of all items, and the users as rows of these, int64 [n]."""
        distinct, rows = torch.unique(users, return_inverse=True)
        of_users = {m: table[distinct] for m, table in self.modal_users.items()}
        histories = tuple(part.select(distinct) for part in self.final.histories)
        final = self.final.rows[USERS][distinct], self.items
        return TeacherVectors(*final, of_users, self.modal_items, None, None, {}, histories=histories), rows


def scores_of(job: LabelJob | RankingJob, train: Csr) -> TeacherScores:
    """Opens what a labeler or ranker scores with, on the job's device.

    Args:
        job: The job.
        train: The train items of all users.

    Raises:
        InputError: the job asks for a GPU, and there is none in this process.
    """
    if job.device == "cuda" and not torch.cuda.is_available():
        raise InputError(
            "cluster.gpus_per_labeler: torch finds no GPU in this process; set cluster.gpus_per_labeler=0, or run on hosts with GPUs and a "
            "torch that is built for them"
        )
    return TeacherScores(job.teacher_url, job.revision, lambda: train, job.cache_dir, device=torch.device(job.device))
