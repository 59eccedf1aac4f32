"""Holds what linear models are fitted on, what a fit leaves, and the counts that its memory depends on."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from ..graph import BipartiteGraph
from ..histories import Histories
from .search import Settings


@dataclass(frozen=True)
class LinearInputs:
    """Holds what a linear model is fitted on, all of it in memory.

    Attributes:
        graph: The train graph.
        features: Standardised features of all items by modality, float32 [num_items, d_m]; a row of zeros is a missing one. Empty where
            the kind reads no features and adds no content.
        seed: Seed of random starts.
    """

    graph: BipartiteGraph
    features: Mapping[str, Tensor] = field(default_factory=dict)
    seed: int = 0


@dataclass(frozen=True)
class LinearFit:
    """Holds a fitted model.

    Attributes:
        users, items: Vectors, float32 [num_users, r] and [num_items, r]; a score is their dot product plus those of the histories, and a
            user's scores have the standard deviation 1 over all items.
        settings: The settings that the model was fitted with, the chosen ones among them.
        chosen: The names of the settings that were chosen on validation.
        value: The validation metric that chose them; None where nothing was chosen.
        trials: How many settings were tried.
        histories: Scores from all users' histories, at most one: with the rank 0 in the place of vectors, r = 0, and beside
            vectors where the spectral filter has `neighbours`.
    """

    users: Tensor
    items: Tensor
    settings: Settings
    chosen: tuple[str, ...]
    value: float | None
    trials: int
    histories: Histories = ()

    def facts(self) -> dict[str, Any]:
        """Returns what a manifest says of the fit, JSON-able."""
        return {"settings": self.settings, "chosen": list(self.chosen), "trials": self.trials}


@dataclass(frozen=True)
class CatalogCounts:
    """Holds what the memory of fitting depends on.

    Attributes:
        users, items, interactions: Their numbers in train.
        dims: d_m by modality that the teacher reads.
    """

    users: int
    items: int
    interactions: int
    dims: Mapping[str, int]
