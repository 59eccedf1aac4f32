"""Measures how closely a student ranks as its teacher does, without any held-out interaction.

A student that is distilled well may still be better or worse than its teacher on held-out items by chance. The share of the teacher's best
items that it ranks among its own best is a mean over far more items, and needs no held-out ones. It is the fidelity of Stanton et al.
(2021, "Does Knowledge Distillation Really Work?") for rankings.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from .graph import Csr
from .histories import HistoryScores
from .top_k import top_k

MOST_USERS = 10_000
MOST_PAIRS = 1 << 32  # of a user and an item: what is scored for one model, minutes of one core at most


@dataclass(frozen=True)
class Scores:
    """Holds what the scores of all users for all items are computed from.

    Attributes:
        users, items: Vectors, float [num_users, d] and [num_items, d].
        histories: Scores from all users' histories, which are added to the vectors' dot products.
    """

    users: Tensor
    items: Tensor
    histories: Sequence[HistoryScores] = ()

    def best(self, users: Tensor, seen: Csr, k: int, memory_mib: int) -> Tensor:
        """Ranks the best unseen items of some users, int64 [n, k]; -1 where a user has fewer of them."""
        own, found = [part.select(users) for part in self.histories], []
        for _, scores, items in top_k(self.users[users], self.items, k, seen, memory_mib, own):
            found.append(torch.where(scores == -torch.inf, -1, items))
        return torch.cat(found)


def agreement(teacher: Scores, student: Scores, train: Csr, cutoffs: Sequence[int], memory_mib: int = 256) -> dict[str, float]:
    """Computes the mean over users of |T_k ∩ S_k| / |T_k|, where T_k and S_k are the k best unseen items of teacher and student.

    Users are those with train interactions; of more than `MOST_USERS` of them as many, evenly spaced, and fewer where the
    catalog has more than 400,000 items.

    Args:
        teacher, student: Whose rankings are compared.
        train: Train items of all users, which both leave out.
        cutoffs: The k's, each at most the number of items.
        memory_mib: Bound on one block of scores, MiB.

    Returns:
        {"agreement@<k>": ...} from 0 to 1, as "agreement@20"; empty where no user has train interactions.
    """
    users = train.degrees.nonzero().squeeze(1)
    if not users.numel():
        return {}
    most = max(1, min(MOST_USERS, MOST_PAIRS // train.num_columns))
    users = users[:: -(-users.numel() // most)]
    seen, longest = train.select(users), max(cutoffs)
    of_teacher, of_student = (scores.best(users, seen, longest, memory_mib) for scores in (teacher, student))
    shares = {}
    for k in cutoffs:
        wanted = of_teacher[:, :k]
        hits, counts = _common(wanted, of_student[:, :k], train.num_columns), (wanted >= 0).sum(1)
        shares[f"agreement@{k}"] = float((hits[counts > 0].double() / counts[counts > 0]).mean())
    return shares


def _common(wanted: Tensor, lists: Tensor, num_items: int) -> Tensor:
    """Counts the items of each row of `wanted` that are in the same row of `lists`, int64 [n]; -1 is no item."""
    firsts = torch.arange(wanted.shape[0], device=wanted.device)[:, None] * (num_items + 1)
    listed = (firsts + lists)[lists >= 0]
    return (torch.isin(firsts + wanted, listed) & (wanted >= 0)).sum(1)
