"""Reads YAML that people write: recipes, saved settings, values on the command line."""

import re
from collections import Counter
from collections.abc import Hashable
from itertools import accumulate
from typing import Any

from ..core.errors import InputError

MAX_BYTES = 1 << 18  # recipes have some hundred lines
MAX_VALUES = 100_000  # with everything that aliases (*name) stand for
MAX_DEPTH = 40
MAX_BRACKETS = 200
MESSAGE_LENGTH = 300


def read_yaml(text: str | bytes, what: str) -> Any:
    """Reads values from YAML.

    Args:
        text: UTF-8, with or without a byte order mark.
        what: Names it in messages: a file, or a setting.

    Raises:
        InputError: it is no UTF-8 text, no valid YAML, names a key twice, or is larger or deeper than settings are, also by aliases that
            stand for each other.
    """
    import yaml

    if len(text) > MAX_BYTES:
        raise InputError(f"{what}: {len(text):,} bytes, and settings take less than {MAX_BYTES:,}; is it another file?")
    if isinstance(text, bytes):
        try:
            text = text.decode("utf-8-sig")
        except UnicodeDecodeError as error:
            raise InputError(f"{what}: not UTF-8 text (byte {error.start} is 0x{text[error.start]:02x}); save it as UTF-8") from error
    if _brackets(text) > MAX_BRACKETS:  # before the parser goes down each of them
        raise _too_deep(what)
    try:
        values = yaml.load(text, _loader())  # a SafeLoader
        if _size(values, 0, {}) > MAX_VALUES:
            raise InputError(f"{what}: its aliases (*name) stand for more than {MAX_VALUES:,} values; write out what is needed")
    except RecursionError as error:
        raise _too_deep(what) from error
    except (yaml.YAMLError, ValueError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f"{what}: not valid YAML ({cut(' '.join(str(error).split()))})") from error
    return values


def _too_deep(what: str) -> InputError:
    return InputError(f"{what}: nested more than {MAX_DEPTH} deep; settings have a few levels")


def _brackets(text: str) -> int:
    """Returns how many brackets are open at most, those in quotes too."""
    steps = [1 if each in "[{" else -1 for each in re.findall(r"[\[\]{}]", text)]
    return max(accumulate(steps), default=0)


def cut(text: str) -> str:
    """Returns a text without its middle where it is longer than a message should be."""
    return text if len(text) <= MESSAGE_LENGTH else f"{text[: MESSAGE_LENGTH - 90]} ... {text[-80:]}"


def _size(value: Any, depth: int, known: dict[int, int]) -> int:
    """Counts the values of a tree in which branches may be the same object, as aliases make them.

    Raises:
        RecursionError: it is too deep, or an alias is inside what it stands for.
    """
    if not isinstance(value, (dict, list)):
        return 1
    if depth > MAX_DEPTH:
        raise RecursionError
    if id(value) not in known:
        children = [*value.keys(), *value.values()] if isinstance(value, dict) else value
        known[id(value)] = 1 + sum(_size(child, depth + 1, known) for child in children)
    return known[id(value)]


def _loader() -> Any:
    """A loader of safe YAML that refuses a key that a mapping has already."""
    import yaml

    class Loader(getattr(yaml, "CSafeLoader", yaml.SafeLoader)):  # type: ignore[misc]  # libyaml, where it is there
        def construct_mapping(self, node: Any, deep: bool = False) -> dict[Hashable, Any]:
            keys = [key.value for key, _ in node.value if key.tag != "tag:yaml.org,2002:merge" and isinstance(key.value, str)]
            if len(set(keys)) < len(keys):
                twice = next(key for key, count in Counter(keys).items() if count > 1)
                raise yaml.constructor.ConstructorError(None, None, f"the key {cut(twice)!r} is there twice", node.start_mark)
            return super().construct_mapping(node, deep)

    return Loader
