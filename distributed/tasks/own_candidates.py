"""Draws candidates that the student itself ranks high, and scores them with the teacher (docs/method.md 3.6), in the full engine."""

import torch
from torch import Tensor

from ...core.config import DistillationConfig
from ...core.graph import Csr
from ...core.objectives import Labels, draw_ranked
from ...core.ranking import top_unseen
from ...core.sampling import STREAM_STUDENT, rank_slice
from ..labels.teacher_scores import TeacherScores
from ..worker import Worker


def extended(labels: Labels, items: Tensor, scores: TeacherScores) -> Labels:
    """Returns the labels with further candidates at their end; scores by modality are left out where no loss reads them.

    Args:
        labels: Labels with scores, on the device.
        items: int64 [n, k], the further candidates of each list.
        scores: Scores the further candidates.
    """
    assert labels.scores is not None
    assert labels.modal_scores is not None
    further = scores.labels(labels.users, torch.cat([labels.candidates[:, :1], items], 1))  # scores are relative to the positive's
    assert further.scores is not None
    assert further.modal_scores is not None
    return Labels(
        labels.users,
        torch.cat([labels.candidates, items], 1),
        torch.cat([labels.scores, further.scores[:, 1:]], 1),
        torch.cat([labels.modal_scores[: len(scores.modalities)], further.modal_scores[:, :, 1:]], 2),
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
        return extended(labels, items, self.scores)
