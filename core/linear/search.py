"""Chooses settings on validation: a descent along one setting after the other, through a grid."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

Settings = dict[str, Any]


@dataclass(frozen=True)
class Choice:
    """Describes an open setting.

    Attributes:
        start: The value that the search begins with, and that stands where there is nothing to choose on.
        values: The grid in its order, with `start` in it; the search goes from a value to its neighbours.
    """

    start: Any
    values: tuple[Any, ...]


@dataclass(frozen=True)
class Found:
    """Holds what a search found.

    Attributes:
        settings: The best settings, by name.
        value: Their metric; None where nothing was measured.
        trials: How many settings were measured.
    """

    settings: Settings
    value: float | None
    trials: int


def search(
    choices: Mapping[str, Choice],
    fixed: Mapping[str, Any],
    measure: Callable[[Settings], float],
    trials: int,
    read: Callable[[Settings], Settings] = dict,
) -> Found:
    """Searches the open settings by coordinate descent: of each in turn it goes up or down the grid while the metric gets better.

    It ends when a whole turn brings nothing, or after `trials` measurements. Settings that were measured are not measured again, and of
    equal ones the first found stays, so that the result depends on the measurements alone.

    Args:
        choices: The open settings by name, in the order in which they are searched.
        fixed: The settings that are given.
        measure: Returns the validation metric of all settings together.
        trials: The largest number of measurements.
        read: Returns those of the settings that have a meaning together; settings that differ in others are measured once.
    """
    known: dict[tuple, float] = {}

    def value_of(settings: Settings) -> float | None:
        """Measures settings, or returns None where no trial is left for them."""
        read_here = read(settings)
        key = tuple(read_here.get(name) for name in choices)
        if key not in known:
            if len(known) >= trials:
                return None
            known[key] = measure(read_here)
        return known[key]

    best: Settings = {**fixed, **{name: choice.start for name, choice in choices.items()}}
    value = value_of(best)
    assert value is not None, "there is at least one trial"
    improved = bool(choices)
    while improved:
        improved = False
        for name, choice in choices.items():
            begun = best[name]
            for direction in (1, -1):
                place = choice.values.index(best[name]) + direction
                while 0 <= place < len(choice.values):
                    candidate = {**best, name: choice.values[place]}
                    found = value_of(candidate)
                    if found is None or found <= value:
                        break
                    best, value, improved = candidate, found, True
                    place += direction
                if best[name] != begun:
                    break  # the other direction leads back
    return Found(read(best), value, len(known))
