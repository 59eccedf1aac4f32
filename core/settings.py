"""Declares settings: frozen data classes whose fields carry their documentation and bounds.

A settings class is beside the code that reads it; `jobs/settings.py` gathers all of them into one tree for the command line.
"""

import dataclasses
from typing import Any

from .errors import InputError
from .registry import Registry


def setting(
    default: Any,
    help: str,
    *,
    ge: float | None = None,
    gt: float | None = None,
    le: float | None = None,
    lt: float | None = None,
    choices: tuple[str, ...] | None = None,
    kinds: Registry | None = None,
) -> Any:
    """Returns a documented field of a settings class.

    Args:
        default: The default value; a dict or list is copied for every instance.
        help: One line for `promptmm VERB --help`, with the unit where there is one.
        ge, gt, le, lt: Bounds, checked by `check_bounds`.
        choices: The allowed strings, checked by `check_bounds`.
        kinds: The registry of the kinds that the setting names, checked by `check_bounds`.
    """
    bounds = {"ge": ge, "gt": gt, "le": le, "lt": lt}
    metadata = {"help": help, **bounds, "choices": choices, "kinds": kinds}
    if isinstance(default, dict | list):
        return dataclasses.field(default_factory=lambda: type(default)(default), metadata=metadata)
    return dataclasses.field(default=default, metadata=metadata)


def check_bounds(settings: Any, section: str) -> None:
    """Checks every field of a settings object against its declared bounds, choices and kinds; a class calls it in `__post_init__`.

    Args:
        settings: The settings object.
        section: Name of its section, for messages.

    Raises:
        InputError: a value is not allowed; the message names the setting, the value and what was expected.
    """
    for field in dataclasses.fields(settings):
        value, name = getattr(settings, field.name), f"{section}.{field.name}"
        bounds = field.metadata
        if value is None or not bounds:
            continue
        if bounds["kinds"] is not None:
            bounds["kinds"].check(value)
        if bounds["choices"] is not None and value not in bounds["choices"]:
            raise InputError(f"{name}={value!r}: expected one of {', '.join(bounds['choices'])}")
        for sign, holds in (
            ("ge", lambda v, b: v >= b),
            ("gt", lambda v, b: v > b),
            ("le", lambda v, b: v <= b),
            ("lt", lambda v, b: v < b),
        ):
            bound = bounds[sign]
            if bound is not None and not holds(value, bound):
                words = {"ge": "at least", "gt": "more than", "le": "at most", "lt": "less than"}[sign]
                raise InputError(f"{name}={value}: expected {words} {bound}")
