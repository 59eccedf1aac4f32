"""The two sides are counted and named in one way."""

from promptmm.core.sides import ITEMS, SIDE_NAMES, SIDES, USERS, other_side


def test_sides():
    assert [SIDE_NAMES[side] for side in SIDES] == ["user", "item"]
    assert (SIDE_NAMES[USERS], SIDE_NAMES[ITEMS]) == ("user", "item")
    assert [other_side(side) for side in SIDES] == [ITEMS, USERS]
