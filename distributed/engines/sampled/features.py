"""Holds the features of a worker's own items in the sampled engine: memory-mapped, and standardised while they are multiplied."""

from dataclasses import dataclass

import torch
from torch import Tensor

from ....core.features import Standardisation, chunk_rows
from ....core.sides import ITEMS, SIDE_NAMES, SIDES, USERS
from ....core.teacher.reduction import PromptConstants
from ....graph_store.backend import GraphConnection, RowTable
from ...features import FeatureConstants, RawRows, prepare_features
from ...worker import Worker
from ..view import FeatureInputs


@dataclass(frozen=True)
class ShardedFeatures:
    """Holds the features of this worker's own items, and the prompt's constants.

    Attributes:
        worker: This worker.
        item_ids: Dataset indices of this worker's own items, int64 [n].
        features: Raw rows of these items by modality, memory-mapped.
        constants: Standardisation, G_m and s_m by modality.
        tokens: The sharded tables of the hard tokens h_U and h_I.
    """

    worker: Worker
    item_ids: Tensor
    features: dict[str, RawRows]
    constants: FeatureConstants
    tokens: tuple[RowTable, RowTable]

    @property
    def dims(self) -> dict[str, int]:
        """Returns d_m by modality."""
        return {m: raw.dim for m, raw in self.features.items()}

    def standardisation(self, modality: str) -> Standardisation:
        """Returns the standardisation of one modality."""
        return self.constants.standardisation[modality]

    def inputs(self, users: Tensor, items: Tensor, dropout_keys: tuple[int, ...] | None) -> FeatureInputs:
        """Returns the inputs of reduction layers and prompt for some of this worker's own users and items.

        Args:
            users, items: int64 [n] and [m], places among the own users and the own items.
            dropout_keys: (seed, step) in training, None in evaluation.
        """
        device, fixed = self.worker.device, self.constants
        constants = PromptConstants(self.tokens[ITEMS].read(items), self.tokens[USERS].read(users), fixed.gram, fixed.column_sums)
        rows = {m: self.standardisation(m).lazily(raw.read, items, device) for m, raw in self.features.items()}
        here = torch.arange(items.numel(), device=device)
        return FeatureInputs(constants.to(device), here, rows, dropout_keys, self.item_ids[items].to(device))

    @staticmethod
    def of(connection: GraphConnection, worker: Worker, dim: int, whiten: bool) -> "ShardedFeatures":
        """Computes standardisation, constants and the items' tokens from this worker's own rows; a collective call.

        The users' tokens are left for the caller, who propagates them from the items' tokens.

        Args:
            connection: Connection to the graph.
            worker: This worker.
            dim: d, the number of columns of the tokens.
            whiten: Whether standardised rows are decorrelated.
        """
        features: dict[str, RawRows] = {m: connection.own_features(m) for m in connection.manifest["modalities"]}
        users, items = (connection.table(side, f"tokens_{SIDE_NAMES[side]}", dim) for side in SIDES)
        size = chunk_rows(sum(raw.dim for raw in features.values()))
        constants = prepare_features(worker, features, dim, whiten, size, items.write)
        worker.barrier()
        return ShardedFeatures(worker, connection.own_ids(ITEMS), features, constants, (users, items))
