"""Scores candidate lists with the teacher's vectors at one revision, which stay memory-mapped on the CPU."""

from collections.abc import Callable

import torch
from torch import Tensor

from ...core.graph import Csr
from ...core.objectives import Labels, label, list_scores
from ...core.sides import ITEMS, USERS
from ...core.vectors import TeacherVectors
from ..artifacts.teacher import final_scores, modal_rows


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
        """Scores lists as `labels` does, by scorer in the order of `names`, without taking a positive's score from them: float32 [n, k]."""
        return list_scores(*self._vectors_of(users), lists)

    def labels(self, users: Tensor, lists: Tensor) -> Labels:
        """Scores lists; see `core.objectives.label`. The vectors of the lists' users alone are read from the users' tables.

        Args:
            users: int64 [n], dataset indices.
            lists: int64 [n, 1 + K], the positive first.
        """
        scored = label(*self._vectors_of(users), lists)
        return Labels(users, lists, scored.scores, scored.modal_scores)

    def _vectors_of(self, users: Tensor) -> tuple[TeacherVectors, Tensor]:
        """Returns the vectors of the distinct users and of all items, and the users as rows of these, int64 [n]."""
        distinct, rows = torch.unique(users, return_inverse=True)
        of_users = {m: table[distinct] for m, table in self.modal_users.items()}
        histories = tuple(part.select(distinct) for part in self.final.histories)
        final = self.final.rows[USERS][distinct], self.items
        return TeacherVectors(*final, of_users, self.modal_items, None, None, {}, histories=histories), rows
