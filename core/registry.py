"""Finds the kinds of a component by name: those that ship, and your own as `module:attribute`.

A registry maps the names that a setting may have to references `module:attribute`, which it imports when they are asked for. A kind of
your own is named by such a reference directly (`student.kind=my_module:MyStudent`), and is imported in the same way.
"""

import importlib
from collections.abc import Callable
from typing import Any, Generic, TypeVar

from .errors import InputError

Kind = TypeVar("Kind")


def declares(component: str) -> Callable[[Any], bool]:
    """Returns a function that tells whether an object is a class whose attribute `component` is the given one."""
    return lambda kind: isinstance(kind, type) and getattr(kind, "component", None) == component


def extends(module: str, base: str) -> Callable[[Any], bool]:
    """Whether a class is a subclass of `base` of a module, which is imported when it is asked."""
    return lambda kind: isinstance(kind, type) and issubclass(kind, getattr(importlib.import_module(module), base))


class Registry(Generic[Kind]):
    """Holds the kinds of one component.

    Args:
        what: Name of the component in messages, such as "student".
        setting: The setting that names a kind, such as "student.kind".
        shipped: References `module:attribute` by name; a module that starts with a dot is relative to `package`.
        package: Package of the relative references.
        accepts: Returns whether an imported object is a kind of the component.
        expected: The condition of `accepts` in words, for messages ("a subclass of promptmm.core.students.Student").
    """

    def __init__(
        self, what: str, setting: str, shipped: dict[str, str], package: str, accepts: Callable[[Any], bool], expected: str
    ) -> None:
        self.what, self.setting = what, setting
        self._references, self._package, self._accepts, self._expected = dict(shipped), package, accepts, expected

    @property
    def names(self) -> tuple[str, ...]:
        """Returns the names of the kinds that ship, in the order in which they were declared."""
        return tuple(self._references)

    def check(self, name: str) -> None:
        """Raises InputError where there is no kind of this name; imports a kind of your own to find out, but none that ships."""
        if name not in self._references:
            self.get(name)

    def get(self, name: str) -> Kind:
        """Imports and returns the kind of a name.

        Args:
            name: Name of a kind that ships, or `module:attribute`.

        Raises:
            InputError: there is no such module or attribute, or it is not a kind of the component; the message lists the kinds that ship.
        """
        reference = self._references.get(name, name)
        module_name, colon, attribute = reference.partition(":")
        own_is_relative = name not in self._references and name.startswith(".")  # such as ./my_module.py:MyStudent
        if not colon or not module_name or not attribute or own_is_relative:
            raise InputError(f"{self.setting}={name!r}: no such {self.what}; {self._known()}")
        try:
            module = importlib.import_module(module_name, self._package if module_name.startswith(".") else None)
        except ModuleNotFoundError as error:
            if error.name is None or not f"{module_name}.".startswith(f"{error.name}."):  # an import of its own is missing
                raise
            raise InputError(
                f"{self.setting}={name!r}: there is no module {error.name!r} here; put its file into the folder that the command "
                f"is started from, or install it. {self._known()}"
            ) from error
        if not hasattr(module, attribute):
            raise InputError(f"{self.setting}={name!r}: the module {module_name} has no {attribute}; {self._known()}")
        kind: Kind = getattr(module, attribute)
        if not self._accepts(kind):
            raise InputError(f"{self.setting}={name!r}: {attribute} is not {self._expected}; {self._known()}")
        return kind

    def _known(self) -> str:
        return f"the kinds that ship are {', '.join(self._references)}, and your own is named module:attribute"
