"""Makes the files of an artifact one by one, so that an interrupted command goes on after those that are complete.

While they are made, `begun.json` in the artifact's folder says of what, and each complete file has its facts beside it, in a file of the
same name that ends in `.json`. Completing the artifact writes its manifest and removes both.
"""

import contextlib
import posixpath
from collections.abc import Iterable, Iterator, Mapping

import numpy as np

from ...core.artifact import publish_manifest, sha256_of
from ...core.redaction import redacted_tree
from ...core.storage import JsonObject, exists, join, read_json, remove, staged_file, write_json
from ...core.tensor_file import tensor_file

BEGUN = "begun.json"


def begin(url: str, wanted: JsonObject) -> None:
    """Notes what is made; removes an artifact that is complete, and files that were begun of something else.

    Args:
        url: The artifact's folder.
        wanted: All that decides the files.
    """
    remove(join(url, "manifest.json"))
    begun = join(url, BEGUN)
    if not exists(begun) or read_json(begun) != redacted_tree(wanted):
        remove(begun)  # first: what a killed process leaves of the others is then never taken for finished
        remove(url)
        write_json(begun, wanted)


def is_made(url: str, name: str) -> bool:
    """Whether a file is complete."""
    return exists(join(url, _facts_name(name))) and exists(join(url, name))


def note(url: str, name: str, facts: JsonObject) -> None:
    """Notes that a file is complete; its facts have `bytes` and `sha256`."""
    write_json(join(url, _facts_name(name)), facts)


@contextlib.contextmanager
def tensors(url: str, name: str, shapes: Mapping[str, tuple[str, tuple[int, ...]]], facts: JsonObject) -> Iterator[dict[str, np.ndarray]]:
    """Writes a safetensors file that the block fills, and notes that it is complete.

    Args:
        url: The artifact's folder.
        name: The file.
        shapes: The types and shapes of its tensors; what is yielded is as in `tensor_file`.
        facts: Further facts, beside `bytes` and `sha256`.
    """
    with staged_file(join(url, name)) as path:
        with tensor_file(path, shapes) as arrays:
            yield arrays
        of_file = {"bytes": path.stat().st_size, "sha256": sha256_of(path)}
    note(url, name, {**of_file, **facts})


def facts_of(url: str, name: str) -> JsonObject:
    """Returns the facts of a file that is made."""
    return read_json(join(url, _facts_name(name)))


def publish(url: str, kind: str, metadata: JsonObject, names: Iterable[str]) -> list[JsonObject]:
    """Completes the artifact by its manifest; returns the facts of its files.

    Args:
        url: The artifact's folder.
        kind: Its kind.
        metadata: Facts for the manifest.
        names: All files, each of them made.
    """
    names = list(names)
    facts = [facts_of(url, name) for name in names]
    files = {name: {"bytes": of_file["bytes"], "sha256": of_file["sha256"]} for name, of_file in zip(names, facts)}
    publish_manifest(url, kind, metadata, files)
    for name in (BEGUN, *map(_facts_name, names)):
        remove(join(url, name))
    return facts


def _facts_name(name: str) -> str:
    return f"{posixpath.splitext(name)[0]}.json"
