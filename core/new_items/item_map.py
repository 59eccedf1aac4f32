"""Holds the map from item features to a student's item vectors, as the serving bundle ships it (docs/method.md 11)."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..errors import InputError
from ..storage import JsonObject
from ..tensor_file import save_tensors
from .encoding import Encoding, RawRows
from .given import read_features

FILE = "new_items.safetensors"
ENTRY = "new_items"  # of the bundle's manifest
SEPARATOR = "+"  # between modalities in a tensor's name; no modality's name has it


@dataclass(frozen=True)
class ItemMap:
    """Maps features to item vectors: f(x) = bias + Σ_{m in P} z_m W_m^P, where P is the set of modalities that an item has.

    There is a matrix of its own for each set of modalities, since the best map of one modality is another one beside a second modality
    than alone.

    Attributes:
        encodings: The encoding x_m -> z_m by modality, in the order that modalities have everywhere.
        weights: By set of modalities, float32 [Σ_{m in P} d_m, d]: W_m^P of the set's modalities, one below the other.
        bias: float32 [d], the vector of an item whose features are the mean ones.
        facts: How the map was chosen, JSON-able, for the bundle's manifest.
    """

    encodings: dict[str, Encoding]
    weights: dict[tuple[str, ...], Tensor]
    bias: Tensor
    facts: JsonObject

    @property
    def dim(self) -> int:
        """Returns d, the number of columns of the vectors."""
        return self.bias.numel()

    def vectors(self, features: Mapping[str, RawRows]) -> Tensor:
        """Computes the vectors of n items, float32 [n, d].

        An item whose set of modalities has no matrix of its own takes the largest set that has one and of which it has all modalities, of
        equally large ones the one that comes first. An item without any modality gets `bias`.

        Args:
            features: Raw rows [n, d_m] with their presence, bool [n], by modality; a modality may be left out.
        """
        encoded = {m: self.encodings[m].encode(raw) for m, raw in features.items()}
        names = [m for m in self.encodings if m in encoded]
        given = torch.stack([features[m][1] for m in names], 1)  # [n, number of given modalities]
        out = self.bias.double().repeat(given.shape[0], 1)
        for pattern in torch.unique(given, dim=0):
            chosen = self._set_for({m for m, is_given in zip(names, pattern.tolist()) if is_given})
            rows = (given == pattern).all(1).nonzero().squeeze(1)
            if chosen:
                out[rows] += torch.cat([encoded[m][rows] for m in chosen], 1).double() @ self.weights[chosen].double()
        return out.float()

    def _set_for(self, given: set[str]) -> tuple[str, ...]:
        """Finds the set whose matrix serves an item that has the modalities `given`; () where none does."""
        return max((modalities for modalities in self.weights if given.issuperset(modalities)), key=len, default=())

    def of_given(self, features: Mapping[str, Any], ids: Sequence[str]) -> Tensor:
        """Computes the vectors of items from features as a caller gives them, after checking them; see `read_features`.

        Raises:
            InputError: features do not fit the map, or an item has none; the message names the modality and the item.
        """
        vectors = self.vectors(read_features(features, ids, {m: encoding.dim for m, encoding in self.encodings.items()}))
        wrong = (~vectors.isfinite().all(1)).nonzero().flatten().tolist()
        if wrong:
            raise InputError(f"item {ids[wrong[0]]!r}: its features are so large that its vector is not finite; correct them")
        return vectors

    def write(self, folder: Path) -> None:
        """Writes the file of the map into a bundle's folder."""
        tensors = {f"features.{m}.{name}": t for m, encoding in self.encodings.items() for name, t in encoding.tensors().items()}
        weights = {f"maps.{SEPARATOR.join(modalities)}": w for modalities, w in self.weights.items()}
        save_tensors(folder / FILE, {**tensors, **weights, "bias": self.bias})

    def manifest(self) -> JsonObject:
        """Returns the entry of the bundle's manifest: modalities with their d_m and the sets, as lists in order, and `facts`."""
        modalities = [[m, encoding.dim] for m, encoding in self.encodings.items()]
        return {"modalities": modalities, "sets": [list(modalities) for modalities in self.weights], **self.facts}


def read_item_map(folder: Path, manifest: JsonObject) -> ItemMap | None:
    """Reads the map of a bundle whose files are verified; None where the bundle has none.

    Args:
        folder: The bundle's folder.
        manifest: The bundle's manifest.
    """
    from safetensors.torch import load_file

    entry = manifest.get(ENTRY)
    if entry is None:
        return None
    tensors = load_file(str(folder / FILE))
    encodings = {
        m: Encoding.from_tensors({name.rpartition(".")[2]: t for name, t in tensors.items() if name.startswith(f"features.{m}.")})
        for m, _ in entry["modalities"]
    }
    weights = {tuple(modalities): tensors[f"maps.{SEPARATOR.join(modalities)}"] for modalities in entry["sets"]}
    facts = {name: value for name, value in entry.items() if name not in ("modalities", "sets")}
    return ItemMap(encodings, weights, tensors["bias"], facts)
