"""Gives a command that names nothing remote a network of its own, so that nobody else reaches what its processes listen on."""

import dataclasses
import os
import re
from collections.abc import Iterator
from typing import Any

from ...core.storage import is_local
from ...distributed.config import ClusterConfig
from ...distributed.parent import has_parent
from ...distributed.private_network import enter_private_network

OWN_KIND = re.compile(r"[A-Za-z_][\w.]*:[A-Za-z_]\w*")  # module:attribute


def isolate(config: Any) -> bool:
    """Moves this process, and all that it starts from now on, into a network of its own, where it can do without another one.

    It can where the command starts a Ray of its own (`cluster.executor=ray` without an address), every setting names a local place, and
    none names a class of the user's own, which may talk to anything. `cluster.private_network=false` leaves it where it is, as does a
    system that does not allow it. A process that runs verbs for a program of its own stays where it is, too.

    Args:
        config: What the verb reads: settings, or a recipe of an experiment.

    Returns:
        Whether it did.
    """
    values = list(_walk(config))
    clusters = [value for value in values if isinstance(value, ClusterConfig)]
    starts_ray = any(each.executor == "ray" for each in clusters) and "RAY_ADDRESS" not in os.environ
    may_move = all(each.private_network and each.address is None for each in clusters)
    if not (has_parent() and starts_ray and may_move):
        return False
    texts = [value for value in values if isinstance(value, str)]
    return all(is_local(text) and not OWN_KIND.fullmatch(text) for text in texts) and enter_private_network()


def _walk(value: Any) -> Iterator[Any]:
    """Yields a value and all that is in it: settings objects, fields, keys and elements."""
    yield value
    if dataclasses.is_dataclass(value):
        for field in dataclasses.fields(value):
            yield from _walk(getattr(value, field.name))
    elif isinstance(value, dict):
        for pair in value.items():
            yield from _walk(pair)
    elif isinstance(value, (list, tuple)):
        for each in value:
            yield from _walk(each)
