"""The examples of one step, as every teacher's loss takes them."""

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class Triples:
    """Train pairs with a negative item each: a batch, or one worker's share of it.

    Attributes:
        users, positives, negatives: int64 [batch], rows of the tables and vectors that the loss reads.
        num_examples: What sums over the examples are divided by: the size of the global batch, or with averaged gradients that size a
            worker, so that the shards' terms add up to (or average to) the mean.
        weights: float32 [batch], of the examples in BPR and L2 (`UserWeights`); None where all are 1.
        entries: float32 [batch], Ã's entries at the positive pairs; needed with `teacher.leave_one_out`.
        num_decayed: Items that the feature decay is the mean over, where the reduced rows at hand are a shard of them; else None.
    """

    users: Tensor
    positives: Tensor
    negatives: Tensor
    num_examples: float
    weights: Tensor | None = None
    entries: Tensor | None = None
    num_decayed: float | None = None
