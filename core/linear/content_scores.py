"""Computes content scores, which compare items by their features alone: a linear kind by themselves, or added to another kind."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from ..errors import InputError
from ..features import zca
from .adjacency import Interactions
from .config import LinearConfig
from .search import Choice, Settings

WEIGHTS = "modality_weights."
PREPARATION = "preparation"


class ContentScores:
    """Scores an item by the cosines of its features to the mean of the user's items' features, modality by modality.

    With X_m's rows scaled to unit length and u_m = rownorm(A D_I^-b X_m), the score is Σ_m w_m <u_m, x_m>. Whitened features are
    decorrelated with shrinkage (docs/method.md, notation). w_m are `modality_weights`. Prepared rows are kept, so that trials share them.

    Args:
        interactions: The train interactions.
        features: Standardised features of all items by modality, float32 [num_items, d_m]; a row of zeros is a missing one.
        config: The settings; `preparation` and `modality_weights` are read.

    Raises:
        InputError: the settings name a modality that there is not.
    """

    def __init__(self, interactions: Interactions, features: Mapping[str, Tensor], config: LinearConfig) -> None:
        unknown = [name for name in config.modality_weights or {} if name not in features]
        if unknown:
            raise InputError(
                f"teacher.linear.modality_weights names {', '.join(unknown)}, and the catalog's modalities are {', '.join(features)}"
            )
        self.interactions, self.features, self.config = interactions, features, config
        self._prepared: dict[tuple[str, str], Tensor] = {}

    def choices(self) -> dict[str, Choice]:
        """Returns the settings that may be chosen, by name; the weight of a modality has a name of its own."""
        weights = {f"{WEIGHTS}{m}": Choice(1.0, (0.0, 0.25, 0.5, 1.0, 2.0)) for m in self.features}
        return {PREPARATION: Choice("whitened", ("standardised", "whitened")), **(weights if len(weights) > 1 else {})}

    def given(self) -> Settings:
        """Returns the settings that have a value, by name, as `choices` names them."""
        given: dict[str, Any] = {} if self.config.preparation is None else {PREPARATION: self.config.preparation}
        weights = self.config.modality_weights
        if weights is not None:
            given |= {f"{WEIGHTS}{m}": weights.get(m, 0.0) for m in self.features}
        elif len(self.features) == 1:
            given |= {f"{WEIGHTS}{m}": 1.0 for m in self.features}
        return given

    def settled(self, settings: Settings) -> Settings:
        """Returns settings under the names of `LinearConfig`'s fields; others than those of content stay as they are."""
        weights = {m: settings[f"{WEIGHTS}{m}"] for m in self.features}
        return {**{name: value for name, value in settings.items() if not name.startswith(WEIGHTS)}, "modality_weights": weights}

    def prepared(self, preparation: str, modality: str) -> Tensor:
        """Returns a modality's rows of unit length, float32 [num_items, d_m]; a missing row stays zero."""
        key = preparation, modality
        if key not in self._prepared:
            rows = self.features[modality].double()
            if preparation == "whitened":
                rows = rows @ whitening(rows)
            self._prepared[key] = torch.nn.functional.normalize(rows, dim=1, eps=1e-30).float()
        return self._prepared[key]

    def vectors(self, settings: Settings, item_exponent: float = 0.0) -> tuple[Tensor, Tensor]:
        """Computes vectors of users and items whose dot products are the scores; those of all modalities stand beside each other.

        Args:
            settings: A value for each of `choices` and of `given`.
            item_exponent: b, the exponent of the degrees that the items of a history are divided by.

        Returns:
            float32 [num_users, n] and [num_items, n]; n is the sum of d_m over the modalities with a weight above 0.
        """
        histories, normalize = self.interactions.histories(item_exponent), torch.nn.functional.normalize
        weights = {m: settings[f"{WEIGHTS}{m}"] for m in self.features}
        users, items = [], []
        for modality in [m for m, weight in weights.items() if weight] or self.features:  # without any there is no order at all
            rows = self.prepared(settings[PREPARATION], modality)
            users.append(weights[modality] * normalize(histories.to_users(rows), dim=1, eps=1e-30))
            items.append(rows)
        return torch.cat(users, 1), torch.cat(items, 1)


def content_bytes(num_users: int, num_items: int, dims: Mapping[str, int]) -> int:
    """Returns the bytes of prepared rows of both kinds with a float64 copy of the widest, and of the vectors with a scaled copy."""
    width, widest = sum(dims.values()), max(dims.values(), default=0)
    return num_items * (4 * 4 * width + 2 * 8 * widest) + 3 * 4 * num_users * width + 6 * 8 * widest**2 + 2 * 8 * width**2


def whitening(rows: Tensor) -> Tensor:
    """Returns the whitening (`zca`), float64 [d, d], of standardised rows; rows of zeros are missing."""
    present = rows[rows.any(1)]
    return zca(*torch.linalg.eigh(present.T @ present / max(1, present.shape[0])))
