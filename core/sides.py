"""The two sides of the train graph, users and items, in their one spelling.

A side is 0 (`USERS`) or 1 (`ITEMS`) where code counts: places in a pair of lists, DGL's type ids, keys of random draws. It is "user" or
"item" (`SIDE_NAMES[side]`) where it is a name: of files, columns, tensors and DGL's node types.
"""

USERS, ITEMS = 0, 1
SIDES = (USERS, ITEMS)
SIDE_NAMES = ("user", "item")


def other_side(side: int) -> int:
    """`ITEMS` for `USERS` and the other way round."""
    return ITEMS if side == USERS else USERS
