"""Defines the examples of one step, as every teacher's loss reads them."""

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class Triples:
    """Holds train pairs with one negative item each: a batch, or one worker's share of it.

    Attributes:
        users, positives, negatives: int64 [batch], rows of the tables and vectors that the loss reads.
        num_examples: The divisor of sums over examples: the size of the global batch where the workers' losses are added up, or that size
            divided by the number of workers where their gradients are averaged. Both give the mean over the global batch.
        weights: float32 [batch], weights of the examples in BPR and L2 (`UserWeights`); None where all are 1.
        entries: float32 [batch], Ã's entries at the positive pairs; needed with `teacher.leave_one_out`.
        num_decayed: The divisor of the feature decay's sum over items, where the reduced rows are one worker's share of them; None where
            the decay is the mean over the reduced rows.
        compared: int64 [n], rows of the items that `teacher.loss=softmax` compares all positives with; None with other losses.
    """

    users: Tensor
    positives: Tensor
    negatives: Tensor
    num_examples: float
    weights: Tensor | None = None
    entries: Tensor | None = None
    num_decayed: float | None = None
    compared: Tensor | None = None
