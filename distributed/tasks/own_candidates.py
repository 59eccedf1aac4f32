"""Draws candidates that the student itself ranks high, and scores them with the teacher (docs/method.md 3.6), in the full engine."""

from collections.abc import Callable

import torch
from torch import Tensor

from ...core.config import DistillationConfig
from ...core.graph import Csr
from ...core.histories import add_list_scores
from ...core.objectives import Labels, draw_ranked, label, needs_modalities
from ...core.ranking import top_unseen
from ...core.sampling import STREAM_STUDENT, rank_slice
from ...core.sides import ITEMS, USERS
from ...core.vectors import TeacherVectors
from ..artifacts.teacher import final_scores, modal_rows
from ..messages import StudentJob
from ..worker import Worker


class TeacherScores:
    """Scores lists with a revision's vectors, which stay memory-mapped on the CPU, and its similarities of items.

    Args:
        job: The student's job, which names the teacher and the revision.
        device: The worker's device.
        train: Returns the train items of all users, on the CPU; called where the teacher scores histories.
    """

    def __init__(self, job: StudentJob, device: torch.device, train: Callable[[], Csr]) -> None:
        url, revision, cache_dir = job.teacher_url, job.revision, job.cluster.cache_dir
        by_modality = any(needs_modalities(name) for name in job.distill.loss_weights())
        self.final = final_scores(url, revision, train, cache_dir).to(device)
        modal = modal_rows(url, revision, cache_dir) if by_modality else {}
        self.modal = {modality: [rows.to(device) for rows in sides] for modality, sides in modal.items()}

    def extend(self, labels: Labels, items: Tensor) -> Labels:
        """Returns the labels with further candidates at their end; scores by modality are left out where no loss reads them.

        Args:
            labels: Labels with scores, on the device.
            items: int64 [n, k], the further candidates of each list.
        """
        assert labels.scores is not None
        assert labels.modal_scores is not None
        lists = torch.cat([labels.candidates[:, :1], items], 1)  # scores are relative to the positive's
        users, user_rows = torch.unique(labels.users, return_inverse=True)
        distinct, item_rows = torch.unique(lists, return_inverse=True)
        of_users, of_items = ({m: sides[side][ids] for m, sides in self.modal.items()} for side, ids in ((USERS, users), (ITEMS, distinct)))
        final = self.final.rows[USERS][users], self.final.rows[ITEMS][distinct]
        further = label(TeacherVectors(*final, of_users, of_items, None, None, {}), user_rows, item_rows)
        assert further.scores is not None
        assert further.modal_scores is not None
        of_histories = add_list_scores(torch.zeros_like(further.scores), self.final.histories, labels.users, lists)
        scores = further.scores + of_histories - of_histories[:, :1]
        return Labels(
            labels.users,
            torch.cat([labels.candidates, items], 1),
            torch.cat([labels.scores, scores[:, 1:]], 1),
            torch.cat([labels.modal_scores[: len(self.modal)], further.modal_scores[:, :, 1:]], 2),
        )


class OwnCandidates:
    """Draws `distill.num_student` of the student's best unseen items, ranked anew with the vectors that an epoch starts with.

    Checkpoints are written between epochs, so a run that goes on from one ranks with the same vectors and draws the same items.

    Args:
        config: Settings of distillation.
        worker: This worker.
        train: Train items of all users, on the worker's device.
        seed: `run.seed`.
        scores: Scores the candidates; None where a resident teacher scores whole lists.
    """

    def __init__(self, config: DistillationConfig, worker: Worker, train: Csr, seed: int, scores: TeacherScores | None) -> None:
        self.config, self.worker, self.train, self.seed, self.scores = config, worker, train, seed, scores
        self._ranking: Tensor | None = None

    @torch.no_grad()
    def rank(self, users: Tensor, items: Tensor) -> None:
        """Ranks the best unseen items of all users, each worker a share of the users; a collective call.

        Args:
            users, items: The student's final vectors, float32 [num_users, d_S] and [num_items, d_S].
        """
        shares = [rank_slice(users.shape[0], rank, self.worker.world_size) for rank in range(self.worker.world_size)]
        own = torch.arange(shares[self.worker.rank].start, shares[self.worker.rank].stop, device=users.device)
        ranking = top_unseen(users[own], items, self.train.select(own), self.train, self.config.student_depth)
        self._ranking = self.worker.gather_rows(ranking, [share.stop - share.start for share in shares])

    def extend(self, labels: Labels, examples: Tensor, epoch: int) -> Labels:
        """Returns the labels with candidates of the student's own at their end, drawn uniformly from their users' rankings.

        Args:
            labels: Labels on the worker's device; with scores where the candidates are scored here.
            examples: int64 [n], global indices of the labels' examples, keys of the draws.
            epoch: The epoch of training, a key of the draws.
        """
        assert self._ranking is not None, "an epoch starts with a ranking"
        count, keys = self.config.num_student, (self.seed, epoch, STREAM_STUDENT)
        items = draw_ranked(self._ranking, labels.users, examples, count, *keys)
        if self.scores is None:
            return Labels(labels.users, torch.cat([labels.candidates, items], 1))
        return self.scores.extend(labels, items)
