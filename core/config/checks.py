"""Checks settings of several sections together, and turns settings into plain values."""

import dataclasses
from typing import Any

from ..errors import InputError


def check_balance(section: str, user_balance: float, stage: str, examples: str) -> None:
    """Checks that examples are not visited by user and weighed by their users' interactions too.

    Args:
        section: The section of `user_balance`.
        user_balance: Exponent of the examples' weights.
        stage: The section of `examples`.
        examples: What an epoch of the stage visits.

    Raises:
        InputError: they are.
    """
    if examples == "users" and user_balance:
        raise InputError(
            f"{section}.user_balance={user_balance} has no meaning with {stage}.examples=users, which visits every user alike; leave one "
            "of them out"
        )


def check_start(section: str, start: str, user_exponent: float, item_exponent: float) -> None:
    """Checks that exponents of a spectral start are not set for another start.

    Args:
        section: "teacher" or "student".
        start: What the section's ID tables begin with.
        user_exponent, item_exponent: The exponents.

    Raises:
        InputError: they are.
    """
    for name, value in (("start_user_exponent", user_exponent), ("start_item_exponent", item_exponent)):
        if start != "spectral" and value != 0.5:
            raise InputError(
                f"{section}.{name}={value} has no meaning with {section}.start={start}; leave it out, or set {section}.start=spectral"
            )


def as_dict(config: Any) -> Any:
    """Returns a settings object as nested dictionaries of JSON-able values."""
    return dataclasses.asdict(config)
