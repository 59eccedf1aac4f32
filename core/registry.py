"""Kinds of a component by name: those that ship, and a user's own as `module:attribute`.

A registry maps the names that a setting takes to references `module:attribute`, which are imported when they are asked for. A user's own
kind is named by such a reference directly (`student.kind=my_module:MyStudent`), so shipped and own kinds take the same way.
"""

import importlib
from collections.abc import Callable
from typing import Any, Generic, TypeVar

from .errors import InputError

Kind = TypeVar("Kind")


def declares(component: str) -> Callable[[Any], bool]:
    """Whether a class says that it is a kind of the component, by a class attribute `component`."""
    return lambda kind: isinstance(kind, type) and getattr(kind, "component", None) == component


class Registry(Generic[Kind]):
    """The kinds of one component.

    Args:
        what: Name of a kind in messages, such as "student".
        setting: The setting that names one, such as "student.kind".
        shipped: References by name, `module:attribute`; a module that starts with a dot is relative to `package`.
        package: Package of the relative references.
        accepts: Whether an imported object is such a kind.
        expected: What `accepts` asks for, in words, for the message ("a subclass of promptmm.core.students.Student").
    """

    def __init__(
        self, what: str, setting: str, shipped: dict[str, str], package: str, accepts: Callable[[Any], bool], expected: str
    ) -> None:
        self.what, self.setting = what, setting
        self._references, self._package, self._accepts, self._expected = dict(shipped), package, accepts, expected

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the kinds that ship, in their order."""
        return tuple(self._references)

    def check(self, name: str) -> None:
        """Raises InputError where there is no kind of this name; an own kind is imported to find out, a shipped one is not."""
        if name not in self._references:
            self.get(name)

    def get(self, name: str) -> Kind:
        """The kind of a name.

        Args:
            name: A shipped kind's name, or `module:attribute`.

        Raises:
            InputError: there is no such kind, or what is there is not one; the message lists the kinds that ship.
        """
        reference = self._references.get(name, name)
        module_name, colon, attribute = reference.partition(":")
        own_is_relative = name not in self._references and name.startswith(".")  # such as ./my_module.py:MyStudent
        if not colon or not module_name or not attribute or own_is_relative:
            raise InputError(f"{self.setting}={name!r}: no such {self.what}; {self._known()}")
        try:
            module = importlib.import_module(module_name, self._package if module_name.startswith(".") else None)
        except ModuleNotFoundError as error:
            if error.name is None or not f"{module_name}.".startswith(f"{error.name}."):  # found, but something that it imports is missing
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
