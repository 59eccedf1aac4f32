"""Declares the settings of linear models; section `teacher.linear`."""

import dataclasses
from dataclasses import dataclass
from typing import Any

from ..errors import InputError
from ..settings import check_bounds, setting

CONTENT = ("content_weight", "preparation", "modality_weights")  # what a kind other than content reads of the content that it adds


@dataclass(frozen=True)
class LinearConfig:
    """Settings of the linear models that are fitted in closed form (docs/method.md 7.1); section `teacher.linear`.

    A setting that is not set is chosen on validation from the kind's own grid, within `trials`; without a validation split the kind's
    start value stands. A kind refuses settings that it does not read.
    """

    rank: int | None = setting(
        None,
        "columns of the vectors: singular vectors of spectral, else the rank of the best approximation of the scores, which is exact from "
        "the number of items on; 0: no vectors, the scores stay sums of sparse similarities of items over a user's history, exact and as "
        "large as the catalog asks for (item_knn, rp3beta and polynomial, full engine); read by item_knn, rp3beta, ease, spectral, "
        "polynomial and ials (its factors)",
        ge=0,
    )
    user_exponent: float | None = setting(
        None,
        "users weigh degree^-user_exponent where items are compared: 0, interactions alike; 1, users alike; read by popularity, item_knn, "
        "ease, spectral, polynomial and ials",
        ge=0,
        le=2,
    )
    item_exponent: float | None = setting(
        None,
        "items' columns are scaled by degree^-item_exponent: 0.5 with user_exponent=1 is the normalised graph; read by spectral and "
        "polynomial, and by content for the items of a user's history",
        ge=0,
        le=1,
    )
    output_exponent: float | None = setting(
        None,
        "histories are scaled by degree^-output_exponent of their items before the filter, and scores by degree^output_exponent after it "
        "(GF-CF: 0.5); read by spectral and polynomial",
        ge=0,
        le=1,
    )
    ridge: float | None = setting(None, "λ of EASE, in units of the mean diagonal entry of the items' Gram matrix; read by ease", gt=0)
    dropout: float | None = setting(
        None,
        "p: the part of every history that EASE leaves out, in expectation, where the history predicts its items, so that frequent items "
        "have more of the penalty; 0: none, as EASE was published; read by ease",
        ge=0,
        lt=1,
    )
    shrink: float | None = setting(None, "shrinkage that is added to the denominator of the cosine of two items; read by item_knn", ge=0)
    neighbours: int | None = setting(
        None,
        "similar items that are kept for an item; read by item_knn and rp3beta, by polynomial with power other than 1 or rank=0, and by "
        "spectral with filter=neighbourhood, which keeps so many similarities of items beside its vectors; where it is not "
        "set for spectral it is not searched, and vectors of `rank` columns approximate the sum of both filters",
        ge=1,
    )
    alpha: float | None = setting(None, "α, the power of the random walk's transition probabilities; read by rp3beta", ge=0)
    beta: float | None = setting(None, "β: a score is divided by the item's degree^β; read by rp3beta", ge=0)
    filter: str | None = setting(
        None,
        "ideal: the leading singular vectors alone; neighbourhood: beside the items that share users, as GF-CF; read by spectral",
        choices=("ideal", "neighbourhood"),
    )
    filter_weight: float | None = setting(
        None, "weight of the ideal filter beside filter=neighbourhood, which has the weight 1; read by spectral", gt=0
    )
    degree: int | None = setting(None, "degree K of the filter 1 - (1 - P)^K; read by polynomial", ge=1, le=20)
    power: float = setting(
        1.0,
        "power of every entry of the item graph P (Turbo-CF's s); 1 never builds P and runs by propagation alone; read by polynomial",
        gt=0,
    )
    preparation: str | None = setting(
        None,
        "how features are compared: standardised columns, or whitened ones; read by every linear kind (by others than content where "
        "content_weight is not 0)",
        choices=("standardised", "whitened"),
    )
    modality_weights: dict[str, float] | None = setting(
        None,
        "weights of the modalities' cosines, {name: weight}; those that are not named are left out; read by every linear kind (by others "
        "than content where content_weight is not 0)",
    )
    content_weight: float | None = setting(
        0.0,
        "w: the score of kind=content, in units of each user's standard deviation over the items, is added w times to the kind's own in "
        "the same units; 0: none; null: chosen on validation; above 0 and null need modalities; read by popularity, item_knn, rp3beta, "
        "ease, spectral, polynomial and ials",
        ge=0,
    )
    confidence: float | None = setting(
        None, "weight of an interaction, in the mean over interactions, where everything else has the weight 1; read by ials", gt=0
    )
    regularisation: float | None = setting(None, "L2 on the factors; read by ials", gt=0)
    iterations: int = setting(12, "alternations between users and items; read by ials", ge=1)
    trials: int = setting(32, "settings that the search tries on validation at most; read by every linear kind", ge=1)
    memory_mib: int = setting(4096, "memory for matrices of items by items, MiB: a larger catalog is refused; read by ease", ge=1)

    def __post_init__(self) -> None:
        check_bounds(self, "teacher.linear")
        weights = self.modality_weights
        if weights is not None and (any(weight < 0 for weight in weights.values()) or not any(weights.values())):
            raise InputError(
                f"teacher.linear.modality_weights={weights}: expected weights of at least 0, of which one is more than 0; leave out "
                "the modalities that should not count"
            )

    @property
    def may_add_content(self) -> bool:
        """Returns whether a kind other than content adds a content score, with a weight that is given or chosen."""
        return self.content_weight != 0

    def changed(self) -> dict[str, Any]:
        """Returns the settings that differ from their defaults, by name."""
        return {f.name: getattr(self, f.name) for f in dataclasses.fields(self) if getattr(self, f.name) != f.default}
