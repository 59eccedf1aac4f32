"""Draws the order of examples, negatives and neighbours: functions of seed, epoch and global indices, not of the drawing process."""

from dataclasses import dataclass

import torch
from torch import Tensor

from .errors import InputError
from .graph import Csr
from .random import below, further_bits, permuted, random_below, random_bits

# The first key of each independent random stream; the numbers stay, so that a seed goes on to draw the same.
STREAM_ORDER, STREAM_CANDIDATE, STREAM_TOP, STREAM_DROPOUT, STREAM_INITIAL, STREAM_POSITIVE, STREAM_NEIGHBOUR, STREAM_DECAY = range(8)
STREAM_COMPARED, STREAM_STUDENT, STREAM_POOL, STREAM_POPULAR = 8, 9, 10, 11

WEIGHT_ROWS = 1 << 20  # the number of users whose degrees are read at a time


def epoch_order(num_examples: int, seed: int, epoch: int, positions: slice | Tensor | None = None) -> Tensor:
    """Returns the global indices, int64, of the examples that an epoch visits at the given positions (at all of them by default).

    The permutation is computed point by point, so a worker needs no memory for the positions of other workers.

    Args:
        num_examples: The number of examples in an epoch.
        seed, epoch: Keys of the order.
        positions: A run of positions, of which those beyond the last are left out, or some of them, int64 [n].
    """
    wanted = positions_of(slice(0, num_examples) if positions is None else positions, num_examples)
    return permuted(wanted, num_examples, STREAM_ORDER, seed, epoch)


def positions_of(positions: slice | Tensor, num_examples: int) -> Tensor:
    """Returns positions of an epoch as int64 [n]: of a run those before the last."""
    return positions if isinstance(positions, Tensor) else torch.arange(positions.start, min(positions.stop, num_examples))


@dataclass(frozen=True)
class UserWeights:
    """Weighs train interactions by their user: w = scale · degree^-exponent, with a mean of 1 over the interactions.

    Where few users have most of the interactions, these users dominate a mean over interactions, such as the loss. Metrics are means over
    users, so the weights bring the loss closer to them.

    Attributes:
        pointers: int64 [num_users + 1], the CSR pointers of the users' train items; they may be memory-mapped.
        exponent: 0 gives all interactions the same weight, 1 gives all users the same total weight.
        scale: The number of interactions / Σ degree^(1 - exponent).
    """

    pointers: Tensor
    exponent: float
    scale: float

    @staticmethod
    def of(pointers: Tensor, exponent: float) -> "UserWeights | None":
        """Computes `scale` in one pass over the degrees; returns None where the exponent is 0, since all weights are 1 then."""
        if not exponent:
            return None
        total = 0.0
        for first in range(0, pointers.numel() - 1, WEIGHT_ROWS):
            degrees = pointers[first : first + WEIGHT_ROWS + 1].diff()
            total += float(degrees[degrees > 0].double().pow(1 - exponent).sum())
        return UserWeights(pointers, exponent, float(pointers[-1]) / max(total, 1.0))

    def __call__(self, users: Tensor) -> Tensor:
        """Returns the weights, float32 [n], of interactions of the given users, int64 [n] rows of `pointers`."""
        degrees = self.pointers.index_select(0, users + 1) - self.pointers.index_select(0, users)
        return (self.scale * degrees.double().pow(-self.exponent)).float()


def rank_slice(num_rows: int, rank: int, world_size: int) -> slice:
    """Returns the contiguous rows of a global batch that a rank takes; the ranks' numbers of rows differ by at most one."""
    return slice(num_rows * rank // world_size, num_rows * (rank + 1) // world_size)


def share_of_part(num_rows: int, part: int, num_parts: int, rank: int, world_size: int) -> slice:
    """Returns the contiguous rows that a rank takes of one part (micro-batch) of a global batch."""
    rows = rank_slice(num_rows, part, num_parts)
    share = rank_slice(rows.stop - rows.start, rank, world_size)
    return slice(rows.start + share.start, rows.start + share.stop)


def sample_edges(pointers: Tensor, rows: Tensor, fan_out: int, *keys: int | Tensor) -> tuple[Tensor, Tensor]:
    """Draws up to `fan_out` distinct edges of each row, uniformly without replacement (Floyd's algorithm), vectorised over the rows.

    Args:
        pointers: int64 [num_rows + 1], the row pointers of a CSR matrix.
        rows: int64 [n], the rows to sample; the result keeps their order.
        fan_out: The largest number of edges for a row; -1 takes all of them.
        keys: Keys of the random draw: integers, or int64 tensors [n] that name the rows independently of how they are stored.

    Returns:
        Pointers int64 [n + 1] into the sampled edges, and the edges' places in the matrix, int64, ascending within a row.
    """
    first = pointers.index_select(0, rows)
    degrees = pointers.index_select(0, rows + 1) - first
    counts = degrees if fan_out < 0 else degrees.clamp(max=fan_out)
    out = torch.cat([counts.new_zeros(1), counts.cumsum(0)])
    edges = torch.arange(int(out[-1]), device=rows.device) + torch.repeat_interleave(first - out[:-1], counts)
    many = (degrees > counts).nonzero().squeeze(1)
    if many.numel() and fan_out:
        chosen = torch.empty(many.numel(), fan_out, dtype=torch.int64, device=rows.device)
        sizes, row_bits = degrees[many], random_bits(*(key[many] if isinstance(key, Tensor) else key for key in keys))
        bits = further_bits(row_bits.expand(many.numel())[:, None], torch.arange(fan_out, device=rows.device))
        for slot in range(fan_out):
            last = sizes - (fan_out - slot)
            drawn = below(last + 1, bits[:, slot])
            taken = (chosen[:, :slot] == drawn[:, None]).any(1)
            chosen[:, slot] = torch.where(taken, last, drawn)
        places = out[many][:, None] + torch.arange(fan_out, device=rows.device)
        edges.scatter_(0, places.view(-1), (first[many][:, None] + chosen.sort(1).values).view(-1))
    return out, edges


def check_unseen(train: Csr, ids: Tensor | None = None) -> None:
    """Checks that every user has an unseen item; the arguments are those of `UnseenItems`.

    Raises:
        InputError: a user has seen every item.
    """
    have_all = train.degrees >= train.num_columns
    if bool(have_all.any()):
        row = have_all.nonzero()[0]
        user = int(row if ids is None else ids[row])
        raise InputError(f"user index {user} has seen all {train.num_columns} items in train: there is no negative to learn from")


class UnseenItems:
    """Draws items that a user has not seen in train: exactly uniform, vectorised, without rejection.

    With the user's train items c_0 < c_1 < ..., the r-th unseen item is r + |{j : c_j - j <= r}|. One binary search over the keys
    user * (I + 1) + c_j - j, where I is the number of items, counts these j.
    """

    def __init__(self, train: Csr, ids: Tensor | None = None) -> None:
        """Prepares the keys of the binary search.

        Args:
            train: The train items of every user, without duplicates.
            ids: The users' dataset indices, int64 [num_rows], for the message of an error; None where a user's index is its row.

        Raises:
            InputError: a user has seen every item.
        """
        check_unseen(train, ids)
        self.train = train
        degrees, self.num_items = train.degrees, train.num_columns
        rank_in_row = torch.arange(train.columns.numel(), device=train.columns.device) - train.pointers[:-1].repeat_interleave(degrees)
        self.keys = train.rows * (self.num_items + 1) + train.columns - rank_in_row
        self.pointers, self.degrees = train.pointers, degrees

    def draw(self, users: Tensor, examples: Tensor, num_draws: int, seed: int, epoch: int, stream: int = STREAM_CANDIDATE) -> Tensor:
        """Draws unseen items for each example, independently and uniformly.

        Args:
            users: int64 [n], the user of each example, as a row of `train`.
            examples: int64 [n], the global example indices.
            num_draws: The number of draws for each example.
            seed, epoch, stream: Further keys of the draws.

        Returns:
            Item indices, int64 [n, num_draws].
        """
        slots = torch.arange(num_draws, device=users.device)
        num_unseen = (self.num_items - self.degrees[users])[:, None]
        r = random_below(num_unseen, stream, seed, epoch, examples[:, None], slots)
        num_keys_up_to = torch.searchsorted(self.keys, users[:, None] * (self.num_items + 1) + r, right=True)
        return r + num_keys_up_to - self.pointers[users][:, None]


class WeightedUnseenItems:
    """Draws items that a user has not seen in train, each with a probability that is proportional to a weight: exactly, without rejection.

    Items lie side by side on a line, each as long as its whole-numbered weight. With the user's train items c_0 < c_1 < ... taken out, the
    point r of what is left lies at r + Σ_{j: first(c_j) - Σ_{i<j} w(c_i) <= r} w(c_j) of the whole line, where first(c) is where c begins.
    """

    def __init__(self, train: Csr, weights: Tensor) -> None:
        """Prepares the keys of the binary search.

        Args:
            train: The train items of the users, without duplicates; no user has seen all items.
            weights: int64 [num_items], at least 1 each, with a sum below 2^31.
        """
        self.ends, of_seen = weights.cumsum(0), weights[train.columns]
        self.before = torch.cat([of_seen.new_zeros(1), of_seen.cumsum(0)])  # the seen items' weights up to each, over all rows
        self.pointers, self.length = train.pointers, int(self.ends[-1])
        taken = self.before[:-1] - self.before[train.pointers[train.rows]]  # within the row
        self.keys = train.rows * (self.length + 1) + (self.ends - weights)[train.columns] - taken

    @staticmethod
    def scaled(weights: Tensor) -> Tensor:
        """Returns whole numbers in proportion to weights, float [num_items], as closely as 31 bits allow: int64, at least 1 each."""
        most = 2**31 - 1 - weights.numel()
        return (weights.double() * (most / weights.double().sum().clamp(min=1e-300))).floor().long().clamp_(min=1)

    def draw(self, users: Tensor, examples: Tensor, num_draws: int, seed: int, epoch: int, stream: int = STREAM_POPULAR) -> Tensor:
        """Draws unseen items for each example, independently; arguments and result are those of `UnseenItems.draw`."""
        first, last = self.pointers[users], self.pointers[users + 1]
        left = self.length - (self.before[last] - self.before[first])
        slots = torch.arange(num_draws, device=users.device)
        r = random_below(left[:, None], stream, seed, epoch, examples[:, None], slots)
        passed = torch.searchsorted(self.keys, users[:, None] * (self.length + 1) + r, right=True)
        return torch.searchsorted(self.ends, r + self.before[passed] - self.before[first][:, None], right=True)
