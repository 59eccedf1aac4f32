"""Defines EASE (Steck, "Embarrassingly Shallow Autoencoders for Sparse Data", WWW 2019), with weighted users and denoising."""

import math
from typing import ClassVar

import torch
from torch import Tensor

from ..errors import InputError
from .adjacency import Interactions
from .base import LinearTeacher, chained, rank_choice
from .config import LinearConfig
from .factors import Scores
from .fit import CatalogCounts, LinearInputs
from .search import Choice, Settings

DOUBLE_ITEMS = 4000  # up to this number of items the inverse is computed in float64, where it takes seconds
MATRICES = 3  # items by items that live at once: Gram matrix, its factor and the inverse


def matrix_bytes(num_items: int) -> int:
    """Returns the bytes that fitting holds at once in matrices of items by items."""
    return MATRICES * num_items**2 * (8 if num_items <= DOUBLE_ITEMS else 4)


def most_items(memory_mib: int, num_items: int) -> int:
    """Returns how many items a bound of MiB is room for, in the precision in which `num_items` items are computed where it can."""
    single, double = (math.isqrt(memory_mib * 2**20 // (MATRICES * size)) for size in (4, 8))
    return single if num_items > DOUBLE_ITEMS and single > DOUBLE_ITEMS else min(double, DOUBLE_ITEMS)


class EaseTeacher(LinearTeacher):
    """Predicts an item from the others by ridge regression in closed form.

    With G = A^T diag(deg^-a) A and P = (G + λ m I + p / (1 - p) diag G)^-1, where m is the mean of G's diagonal, the weights are
    W = I - P diag(1 / diag P), and the scores are H W with the users' histories H. a is `user_exponent`, λ `ridge` and p `dropout`.
    W is the least-squares solution in expectation where every item of a history is left out of the input with probability p (Steck,
    "Autoencoders that don't overfit towards the Identity", NeurIPS 2020). p = 0 is EASE as it was published.
    """

    reads: ClassVar[tuple[str, ...]] = ("rank", "user_exponent", "ridge", "dropout")
    limits: ClassVar[tuple[str, ...]] = ("trials", "memory_mib")

    def __init__(self, inputs: LinearInputs, config: LinearConfig) -> None:
        super().__init__(inputs, config)
        count = self.interactions.num_items
        if matrix_bytes(count) > config.memory_mib * 2**20:
            raise InputError(
                f"teacher.kind=ease: the Gram matrix of {count:,} items, its factor and its inverse need {matrix_bytes(count) / 2**20:,.0f}"
                f" MiB, and teacher.linear.memory_mib={config.memory_mib} is room for {most_items(config.memory_mib, count):,} items; "
                "raise that where the host has the memory, or set teacher.kind=spectral, which needs no such matrix"
            )
        self._gram: tuple[float, Tensor] | None = None
        self._weights: tuple[tuple[float, ...], Tensor] | None = None

    @classmethod
    def fitting_bytes(cls, config: LinearConfig, counts: CatalogCounts) -> int:
        return matrix_bytes(counts.items) + super().fitting_bytes(config, counts)

    def choices(self) -> dict[str, Choice]:
        return {
            "ridge": Choice(1.0, (0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 100.0)),
            "dropout": Choice(0.5, (0.0, 0.25, 0.5, 0.75)),
            "user_exponent": Choice(0.5, (0.0, 0.5, 1.0)),
            "rank": rank_choice(self.interactions.num_items),
        }

    def _gram_of(self, exponent: float) -> Tensor:
        """Returns G, [num_items, num_items]."""
        if self._gram is None or self._gram[0] != exponent:
            self._gram = None  # before the next one is made
            count = self.interactions.num_items
            of = Interactions(self.inputs.graph, torch.float64 if count <= DOUBLE_ITEMS else torch.float32)
            gram = torch.empty(count, count, dtype=of.dtype, device=of.like.device)
            for block, rows in of.shared_users(of.user_scale(-exponent)):
                gram[block] = rows
            self._gram = exponent, gram
        return self._gram[1]

    @staticmethod
    def _key(settings: Settings) -> tuple[float, float, float]:
        """Returns what W depends on: user_exponent, ridge and dropout."""
        return settings["user_exponent"], settings["ridge"], settings["dropout"]

    def weights(self, settings: Settings) -> Tensor:
        """Returns W, [num_items, num_items], in float64 for up to 4,000 items and in float32 for more."""
        key = self._key(settings)
        if self._weights is None or self._weights[0] != key:
            self._weights = None
            gram = self._gram_of(key[0])
            regular = gram.clone()
            regular.diagonal().add_(key[1] * gram.diagonal().mean() + key[2] / (1 - key[2]) * gram.diagonal())
            factor, info = torch.linalg.cholesky_ex(regular)
            if info.any():
                raise InputError(
                    f"teacher.kind=ease: with teacher.linear.ridge={key[1]} the items' Gram matrix cannot be inverted; raise it"
                )
            del regular
            inverse = torch.cholesky_inverse(factor)
            del factor
            inverse.div_(-inverse.diagonal().clone())  # column j by -P_jj
            inverse.diagonal().zero_()
            self._weights = key, inverse
        return self._weights[1]

    def vectors(self, settings: Settings) -> tuple[Tensor, Tensor]:
        weights, of = self.weights(settings), self.interactions
        products = Scores(
            of.num_items, lambda x: (weights @ x.to(weights.dtype)).to(x.dtype), lambda x: (weights.T @ x.to(weights.dtype)).to(x.dtype)
        )
        key = self._key(settings)
        return self.best_vectors(key, chained(of.histories(), products), settings["rank"], lambda: (of.dense_histories(), weights.T))
