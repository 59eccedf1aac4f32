"""Defines how code writes the two sides of the train graph, users and items.

A side is a number, 0 (`USERS`) or 1 (`ITEMS`), as a place in a pair of lists, as DGL's type id and as a key of random draws. It is
"user" or "item" (`SIDE_NAMES[side]`) in the names of files, columns, tensors and DGL's node types.
"""

USERS, ITEMS = 0, 1
SIDES = (USERS, ITEMS)
SIDE_NAMES = ("user", "item")


def other_side(side: int) -> int:
    """Returns `ITEMS` for `USERS`, and `USERS` for `ITEMS`."""
    return ITEMS if side == USERS else USERS
