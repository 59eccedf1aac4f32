"""Training examples, negatives and candidate lists, all as functions of (seed, epoch, global example index)."""

from dataclasses import dataclass

import torch
from torch import Tensor

from .errors import InputError
from .graph import Csr
from .random import below, further_bits, permuted, random_below, random_bits

# The first key of each independent random stream.
STREAM_ORDER, STREAM_CANDIDATE, STREAM_TOP, STREAM_DROPOUT, STREAM_INITIAL, STREAM_TUNING, STREAM_NEIGHBOUR, STREAM_DECAY = range(8)

WEIGHT_ROWS = 1 << 20  # users whose degrees are read at a time


def epoch_order(num_examples: int, seed: int, epoch: int, positions: slice | None = None) -> Tensor:
    """The examples that an epoch visits at the given positions (all of them by default): int64.

    The permutation is computed point by point, so a worker needs no memory for the rest of it.
    """
    wanted = positions or slice(0, num_examples)
    return permuted(torch.arange(wanted.start, min(wanted.stop, num_examples)), num_examples, STREAM_ORDER, seed, epoch)


@dataclass(frozen=True)
class UserWeights:
    """Weights of train interactions by their user: w = scale · degree^-exponent, with a mean of 1 over the interactions.

    Where few users have most interactions, a loss over interactions is theirs, while metrics are means over users.

    Attributes:
        pointers: int64 [num_users + 1], of the users' train items; may be memory-mapped.
        exponent: 0 weighs interactions alike, 1 users alike.
        scale: Number of interactions / Σ degree^(1 - exponent).
    """

    pointers: Tensor
    exponent: float
    scale: float

    @staticmethod
    def of(pointers: Tensor, exponent: float) -> "UserWeights | None":
        """None where all weights are 1; streams the degrees once."""
        if not exponent:
            return None
        total = 0.0
        for first in range(0, pointers.numel() - 1, WEIGHT_ROWS):
            degrees = pointers[first : first + WEIGHT_ROWS + 1].diff()
            total += float(degrees[degrees > 0].double().pow(1 - exponent).sum())
        return UserWeights(pointers, exponent, float(pointers[-1]) / max(total, 1.0))

    def __call__(self, users: Tensor) -> Tensor:
        """float32 [n] for the users (rows of the pointers) of some interactions, int64 [n]."""
        degrees = self.pointers.index_select(0, users + 1) - self.pointers.index_select(0, users)
        return (self.scale * degrees.double().pow(-self.exponent)).float()


def rank_slice(num_rows: int, rank: int, world_size: int) -> slice:
    """The rows of a global batch that a rank takes: contiguous, sizes differing by one at most."""
    return slice(num_rows * rank // world_size, num_rows * (rank + 1) // world_size)


def share_of_part(num_rows: int, part: int, num_parts: int, rank: int, world_size: int) -> slice:
    """The rows of one part of a global batch that a rank takes: contiguous."""
    rows = rank_slice(num_rows, part, num_parts)
    mine = rank_slice(rows.stop - rows.start, rank, world_size)
    return slice(rows.start + mine.start, rows.start + mine.stop)


def sample_edges(pointers: Tensor, rows: Tensor, fan_out: int, *keys: int | Tensor) -> tuple[Tensor, Tensor]:
    """Up to `fan_out` distinct edges of each row, uniform without replacement (Floyd's algorithm), vectorised over the rows.

    Args:
        pointers: int64 [num_rows + 1], a CSR matrix.
        rows: int64 [n], rows to sample; their order is kept.
        fan_out: Edges a row; -1 takes all of them.
        keys: Of the random draw: integers, or int64 tensors [n] that name the rows independently of how they are stored.

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
        sizes, own_keys = degrees[many], random_bits(*(key[many] if isinstance(key, Tensor) else key for key in keys))
        bits = further_bits(own_keys.expand(many.numel())[:, None], torch.arange(fan_out, device=rows.device))
        for slot in range(fan_out):
            last = sizes - (fan_out - slot)
            drawn = below(last + 1, bits[:, slot])
            taken = (chosen[:, :slot] == drawn[:, None]).any(1)
            chosen[:, slot] = torch.where(taken, last, drawn)
        places = out[many][:, None] + torch.arange(fan_out, device=rows.device)
        edges.scatter_(0, places.view(-1), (first[many][:, None] + chosen.sort(1).values).view(-1))
    return out, edges


class UnseenItems:
    """Draws items that a user has not seen in train: exactly uniform, vectorised, without rejection.

    With the user's train items c_0 < c_1 < ..., the r-th unseen item is r + |{j : c_j - j <= r}|, one binary search over the
    keys user * (I + 1) + c_j - j.
    """

    def __init__(self, train: Csr, ids: Tensor | None = None) -> None:
        """Args: train: the train items of every user, without duplicates; ids: the users' indices, where they are not the rows."""
        degrees, self.num_items = train.degrees, train.num_columns
        if bool((degrees >= self.num_items).any()):
            row = (degrees >= self.num_items).nonzero()[0]
            user = int(row if ids is None else ids[row])
            raise InputError(f"user index {user} has seen all {self.num_items} items in train: there is no negative to learn from")
        rank_in_row = torch.arange(train.columns.numel(), device=train.columns.device) - train.pointers[:-1].repeat_interleave(degrees)
        self.keys = train.rows * (self.num_items + 1) + train.columns - rank_in_row
        self.pointers, self.degrees = train.pointers, degrees

    def draw(self, users: Tensor, examples: Tensor, num_draws: int, seed: int, epoch: int, stream: int = STREAM_CANDIDATE) -> Tensor:
        """Independent uniform draws for each example.

        Args:
            users: int64 [n], the user of each example.
            examples: int64 [n], the global example index.
            num_draws: Draws per example.

        Returns:
            int64 [n, num_draws].
        """
        slots = torch.arange(num_draws, device=users.device)
        unseen = (self.num_items - self.degrees[users])[:, None]
        r = random_below(unseen, stream, seed, epoch, examples[:, None], slots)
        below = torch.searchsorted(self.keys, users[:, None] * (self.num_items + 1) + r, right=True)
        return r + below - self.pointers[users][:, None]
