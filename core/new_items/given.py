"""Reads and checks the features that a caller gives for new items."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from ..errors import InputError
from .encoding import RawRows


def read_features(features: Mapping[str, Any], ids: Sequence[str], dims: Mapping[str, int]) -> dict[str, RawRows]:
    """Checks the features of n items and returns them as tensors.

    Args:
        features: By modality an array-like [n, d_m] of numbers. A row of NaN alone means that the item lacks the modality, as does a
            modality that is left out.
        ids: The n items' raw ids, for messages.
        dims: d_m by modality that the map knows.

    Returns:
        Rows, float64 [n, d_m] with zeros where missing, and their presence, bool [n], by modality.

    Raises:
        InputError: a modality is unknown, an array has another shape or holds no numbers, a row holds NaN beside numbers or infinity, or
            an item has no modality at all.
    """
    unknown = sorted(set(map(str, features)) - set(dims))
    if unknown:
        raise InputError(f"modality {unknown[0]!r}: the map of new items has none of this name; it reads {', '.join(dims)}")
    if not features:
        raise InputError(f"with_new_items needs features; give at least one of {', '.join(dims)}")
    read = {m: _rows(m, features[m], ids, dim) for m, dim in dims.items() if m in features}
    without = (~torch.stack([present for _, present in read.values()]).any(0)).nonzero().flatten().tolist()
    if without:
        shown = ", ".join(repr(ids[at]) for at in without[:20]) + (f" and {len(without) - 20} more" if len(without) > 20 else "")
        raise InputError(f"items {shown}: no modality has a row; give each new item at least one of {', '.join(dims)}")
    return read


def _rows(modality: str, given: Any, ids: Sequence[str], dim: int) -> RawRows:
    """Reads one modality's rows, float64 [n, dim] with zeros where missing, and their presence, bool [n]."""
    rows = _numbers(modality, given)
    if rows.shape != (len(ids), dim):
        raise InputError(
            f"modality {modality!r}: features of shape {list(rows.shape)}, expected [{len(ids)}, {dim}]: a row of {dim} numbers for each "
            "of the new items"
        )
    missing = rows.isnan().all(1)
    wrong = (~rows.isfinite().all(1) & ~missing).nonzero().flatten().tolist()
    if wrong:
        value = "NaN beside numbers" if rows[wrong[0]].isnan().any() else "an infinite value"
        raise InputError(
            f"modality {modality!r}: the row of item {ids[wrong[0]]!r} has {value}; correct it, or make it NaN as a whole where the item "
            "lacks the modality"
        )
    return torch.where(missing[:, None], 0.0, rows), ~missing


def _numbers(modality: str, given: Any) -> Tensor:
    import numpy as np

    try:
        if isinstance(given, Tensor):
            return given.detach().to("cpu", torch.float64)
        return torch.from_numpy(np.array(given, dtype=np.float64))
    except (TypeError, ValueError) as error:
        raise InputError(f"modality {modality!r}: the features are no array of numbers ({error})") from error
