"""Gives vectors to items that nobody has touched, from their features (docs/method.md 11)."""

from .fit import fit_item_map
from .item_map import ItemMap, read_item_map

__all__ = ["ItemMap", "fit_item_map", "read_item_map"]
