"""Chooses the items that are held out whole, with all their interactions (`source.cold_items`)."""

import numpy as np

from ..core.errors import InputError
from .catalog import Catalog

STREAM = 0xC01D  # a key beside the seed, so that the draw is not that of the random split


def choose_cold_items(catalog: Catalog, share: float, seed: int) -> np.ndarray:
    """Draws `share` of the items that have at least one interaction and features in at least one modality, without replacement.

    Args:
        catalog: The whole catalog, before any of its interactions is written.
        share: From 0 to below 1, rounded to whole items; 0 holds nothing out.
        seed: The same seed and catalog give the same items.

    Returns:
        bool [num_items], true where an item is held out.

    Raises:
        InputError: the catalog has no features, or the share is less than one item.
    """
    is_cold = np.zeros(catalog.num_items, bool)
    if not share:
        return is_cold
    if not catalog.features:
        raise InputError(
            f"source.cold_items={share}: an item without interactions is ranked by its features, and the source has none; name feature "
            "files in source.modalities, or leave source.cold_items out"
        )
    degrees = np.zeros(catalog.num_items, np.int64)
    for chunk in catalog.rows():
        degrees += np.bincount(chunk["item"], minlength=catalog.num_items)
    has_features = np.any([present for _, present in catalog.features.values()], axis=0)
    eligible = np.flatnonzero((degrees > 0) & has_features)
    count = int(np.floor(share * len(eligible) + 0.5))
    if not count:
        raise InputError(
            f"source.cold_items={share}: less than one of the {len(eligible)} items that have interactions and features; hold out more"
        )
    is_cold[np.random.default_rng([seed, STREAM]).choice(eligible, count, replace=False)] = True
    return is_cold
