"""Defines a model that compares items by their features alone: a user is the mean of what it interacted with."""

from typing import Any, ClassVar

import torch
from torch import Tensor

from ..config import TeacherConfig
from ..errors import InputError
from ..features import SHRINKAGE
from .base import CatalogCounts, LinearInputs, LinearTeacher
from .config import LinearConfig
from .search import Choice, Settings

WEIGHTS = "modality_weights."


class ContentTeacher(LinearTeacher):
    """Scores an item by the cosines of its features to the mean of the user's items' features, modality by modality.

    With X_m's rows scaled to unit length and u_m = rownorm(A D_I^-b X_m), the score is Σ_m w_m <u_m, x_m>. Whitened features are
    decorrelated with shrinkage (docs/method.md, notation). b is `item_exponent`, w_m are `modality_weights`. The vectors of all modalities
    stand beside each other; vectors by modality there are none, since these would all need the same size.
    """

    reads_features: ClassVar[bool] = True
    reads: ClassVar[tuple[str, ...]] = ("preparation", "item_exponent", "modality_weights")

    def __init__(self, inputs: LinearInputs, config: LinearConfig) -> None:
        super().__init__(inputs, config)
        unknown = [name for name in config.modality_weights or {} if name not in inputs.features]
        if unknown:
            raise InputError(
                f"teacher.linear.modality_weights names {', '.join(unknown)}, and the catalog's modalities are {', '.join(inputs.features)}"
            )
        self._prepared: dict[tuple[str, str], Tensor] = {}

    @classmethod
    def has_modality_vectors(cls, config: TeacherConfig) -> bool:
        return False

    @classmethod
    def num_columns(cls, config: LinearConfig, counts: CatalogCounts) -> int:
        return sum(counts.dims.values())

    @classmethod
    def fitting_bytes(cls, config: LinearConfig, counts: CatalogCounts) -> int:
        """Returns the bytes of prepared rows of both kinds with a float64 copy of the widest, and of the vectors with a scaled copy."""
        width, widest = sum(counts.dims.values()), max(counts.dims.values(), default=0)
        return counts.items * (4 * 4 * width + 2 * 8 * widest) + 3 * 4 * counts.users * width + 6 * 8 * widest**2 + 2 * 8 * width**2

    def choices(self) -> dict[str, Choice]:
        weights = {f"{WEIGHTS}{m}": Choice(1.0, (0.0, 0.25, 0.5, 1.0, 2.0)) for m in self.inputs.features}
        return {
            "preparation": Choice("whitened", ("standardised", "whitened")),
            **(weights if len(weights) > 1 else {}),
            "item_exponent": Choice(0.0, (0.0, 0.25, 0.5)),
        }

    def given(self) -> Settings:
        given: dict[str, Any] = super().given()
        weights = given.pop("modality_weights", None)
        if weights is not None:
            given |= {f"{WEIGHTS}{m}": weights.get(m, 0.0) for m in self.inputs.features}
        elif len(self.inputs.features) == 1:
            given |= {f"{WEIGHTS}{m}": 1.0 for m in self.inputs.features}
        return given

    def settled(self, settings: Settings) -> Settings:
        weights = {m: settings[f"{WEIGHTS}{m}"] for m in self.inputs.features}
        return {**{name: value for name, value in settings.items() if not name.startswith(WEIGHTS)}, "modality_weights": weights}

    def prepared(self, preparation: str, modality: str) -> Tensor:
        """Returns a modality's rows of unit length, float32 [num_items, d_m]; a missing row stays zero."""
        key = preparation, modality
        if key not in self._prepared:
            rows = self.inputs.features[modality].double()
            if preparation == "whitened":
                rows = rows @ whitening(rows)
            self._prepared[key] = torch.nn.functional.normalize(rows, dim=1, eps=1e-30).float()
        return self._prepared[key]

    def vectors(self, settings: Settings) -> tuple[Tensor, Tensor]:
        histories, normalize = self.interactions.histories(settings["item_exponent"]), torch.nn.functional.normalize
        weights = {m: settings[f"{WEIGHTS}{m}"] for m in self.inputs.features}
        users, items = [], []
        for modality in [m for m, weight in weights.items() if weight] or self.inputs.features:  # without any there is no order at all
            rows = self.prepared(settings["preparation"], modality)
            users.append(weights[modality] * normalize(histories.to_users(rows), dim=1, eps=1e-30))
            items.append(rows)
        return torch.cat(users, 1), torch.cat(items, 1)


def whitening(rows: Tensor) -> Tensor:
    """Returns V diag((λ + s mean(λ))^-1/2) V^T with the shrinkage s, float64 [d, d], of standardised rows; rows of zeros are missing."""
    present = rows[rows.any(1)]
    values, vectors = torch.linalg.eigh(present.T @ present / max(1, present.shape[0]))
    values = values.clamp(min=0)
    return (vectors * (values + SHRINKAGE * values.mean().clamp(min=1e-30)).rsqrt()) @ vectors.T
