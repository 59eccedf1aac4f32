"""Reads and writes artifacts on any fsspec URL: an artifact is complete or absent, and is verified when it is read.

An artifact is a folder with a `manifest.json` that lists every other file with its size and SHA-256. On a local file system it is
written beside its place and renamed; on an object store the manifest is uploaded last. A reader therefore never sees a half-written
artifact.
"""

import contextlib
import hashlib
import json
import os
import shutil
import tempfile
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from .errors import InputError
from .storage import exists, filesystem, is_local, join, local_path, read_json, remove, write_bytes, write_json

SCHEMA_VERSION = 1
MANIFEST = "manifest.json"


def sha256_of(path: Path) -> str:
    """Computes the SHA-256 of a local file, as hex digits."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest() if hasattr(hashlib, "file_digest") else _digest(file)


def _digest(file: Any) -> str:  # Python 3.10 has no hashlib.file_digest
    digest = hashlib.sha256()
    while chunk := file.read(1 << 20):
        digest.update(chunk)
    return digest.hexdigest()


def describe_files(root: Path) -> dict[str, dict]:
    """Returns size (bytes) and SHA-256 of every file below `root` but the manifest, by relative name."""
    return {
        path.relative_to(root).as_posix(): {"bytes": path.stat().st_size, "sha256": sha256_of(path)}
        for path in sorted(root.rglob("*"))
        if path.is_file() and path.name != MANIFEST
    }


@contextlib.contextmanager
def write_artifact(url: str, kind: str, metadata: dict) -> Iterator[Path]:
    """Writes an artifact: yields an empty local folder to fill, and publishes it when the block ends without an error.

    `metadata` is read when the block ends, so the block may fill it. An existing artifact at `url` is replaced only then.

    Args:
        url: Where the artifact goes.
        kind: The kind of the artifact ("dataset", "graph", ...); readers check it.
        metadata: JSON-able facts for the manifest.
    """
    if is_local(url):
        target = local_path(url)
        target.parent.mkdir(parents=True, exist_ok=True)
        staging = Path(tempfile.mkdtemp(prefix=f".{target.name}.", suffix=".tmp", dir=target.parent))
    else:
        staging = Path(tempfile.mkdtemp(prefix="promptmm-"))
    try:
        yield staging
        manifest = _manifest(kind, metadata, describe_files(staging))
        if is_local(url):
            write_json(str(staging / MANIFEST), manifest)
            staging.chmod(0o755)
            old = target.with_name(f".{target.name}.{uuid.uuid4().hex[:8]}.old")
            if target.exists():
                os.replace(target, old)
            os.replace(staging, target)
            shutil.rmtree(old, ignore_errors=True)
        else:
            remove(join(url, MANIFEST))  # first, so that a killed process leaves no manifest without its files
            remove(url)
            fs, path = filesystem(url)
            for name in manifest["files"]:
                fs.put_file(str(staging / name), f"{path}/{name}")
            write_json(join(url, MANIFEST), manifest)
    finally:
        shutil.rmtree(staging, ignore_errors=True)


def copy_artifact(url: str, target: str, kind: str, cache_dir: str | None = None) -> None:
    """Verifies an artifact and copies it with the same manifest; replaces an artifact that is at `target`.

    Args:
        url: The artifact to copy.
        target: Where the copy goes.
        kind: The kind that the artifact must have.
        cache_dir: As in `open_artifact`.

    Raises:
        InputError: the artifact is missing, of another kind, or damaged.
    """
    folder, manifest = open_artifact(url, kind, cache_dir)
    metadata = {key: value for key, value in manifest.items() if key not in ("schema_version", "kind", "files")}
    with write_artifact(target, kind, metadata) as staging:
        for name in manifest["files"]:
            (staging / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(folder / name, staging / name)


def publish_manifest(url: str, kind: str, metadata: dict, files: dict[str, dict]) -> None:
    """Completes an artifact whose files several writers wrote in place: without its manifest it counts as absent.

    Args:
        url: The artifact.
        kind: The kind of the artifact; readers check it.
        metadata: JSON-able facts for the manifest.
        files: `{"bytes": ..., "sha256": ...}` by file name relative to `url`, as the writers measured them.
    """
    write_json(join(url, MANIFEST), _manifest(kind, metadata, files))


class ShardWriter:
    """Writes one process's files of an artifact that several processes write together; `publish_manifest` completes it.

    Attributes:
        url: The artifact.
        files: Size and SHA-256 of the files that this process wrote, by name, for the manifest.
    """

    def __init__(self, url: str) -> None:
        self.url = url
        self.files: dict[str, dict] = {}

    def clear(self) -> None:
        """Removes an older artifact, its manifest first; one process calls it before any process writes."""
        remove(join(self.url, MANIFEST))
        remove(self.url)

    def add(self, name: str, data: bytes) -> None:
        """Writes one file below the artifact and notes its size and checksum."""
        write_bytes(join(self.url, name), data)
        self.files[name] = {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}


def _manifest(kind: str, metadata: dict, files: dict[str, dict]) -> dict:
    return {"schema_version": SCHEMA_VERSION, "kind": kind, **metadata, "files": files}


def has_artifact(url: str) -> bool:
    """Returns whether a complete artifact is at `url`."""
    return exists(join(url, MANIFEST))


def read_manifest(url: str, kind: str) -> dict:
    """Returns the manifest of the artifact at `url`.

    Raises:
        InputError: there is no artifact, it is of another kind, or it was written by an incompatible version.
    """
    if not has_artifact(url):
        raise InputError(f"{url}: no complete {kind} here ({MANIFEST} is missing); run the verb that makes it first")
    manifest = read_json(join(url, MANIFEST))
    if manifest.get("kind") != kind:
        raise InputError(f"{url}: expected a {kind}, found a {manifest.get('kind')!r}")
    if manifest.get("schema_version") != SCHEMA_VERSION:
        raise InputError(
            f"{url}: schema version {manifest.get('schema_version')}, this promptmm reads {SCHEMA_VERSION}; make the {kind} again"
        )
    return manifest


def manifest_digest(manifest: dict) -> str:
    """Returns the SHA-256 of a manifest, and so of everything that the artifact holds; lineage consists of these."""
    return hashlib.sha256(json.dumps(manifest, sort_keys=True).encode()).hexdigest()


def open_artifact(
    url: str, kind: str, cache_dir: str | None = None, wanted: Callable[[str], bool] = lambda name: True
) -> tuple[Path, dict]:
    """Verifies the artifact at `url`; returns a local folder that holds its files, and its manifest.

    A local artifact is used where it is. A remote one is downloaded once.

    Args:
        url: The artifact.
        kind: The kind that it must have.
        cache_dir: Folder for the local copy of a remote artifact; the system's temporary folder by default.
        wanted: Whether a file, by its relative name, is needed; the others are neither fetched nor verified.

    Raises:
        InputError: the artifact is missing, or a file is missing, truncated or changed since it was written.
    """
    manifest = read_manifest(url, kind)
    if is_local(url):
        folder = local_path(url)
    else:
        base = Path(cache_dir) if cache_dir else Path(tempfile.gettempdir()) / f"promptmm-cache-{os.getuid()}"
        folder = base / manifest_digest(manifest)[:24]
    wrong = _not_as_described(folder, {name: facts for name, facts in manifest["files"].items() if wanted(name)})
    if wrong and not is_local(url):
        _download(url, folder, manifest, wrong)
        wrong = _not_as_described(folder, {name: manifest["files"][name] for name in wrong})
    for name in wrong:
        if not (folder / name).is_file():
            raise InputError(f"{join(url, name)}: missing, though the manifest lists it; make the {kind} again")
        raise InputError(f"{join(url, name)}: checksum does not match the manifest (truncated or changed); make the {kind} again")
    return folder, manifest


def _not_as_described(folder: Path, files: dict[str, dict]) -> list[str]:
    """Returns the names of files that `folder` lacks, or that have another size or checksum than `files` lists."""

    def is_right(path: Path, expected: dict) -> bool:
        return path.is_file() and path.stat().st_size == expected["bytes"] and sha256_of(path) == expected["sha256"]

    return [name for name, expected in files.items() if not is_right(folder / name, expected)]


def _download(url: str, folder: Path, manifest: dict, names: list[str]) -> None:
    fs, path = filesystem(url)
    for name in names:
        target = folder / name
        target.parent.mkdir(parents=True, exist_ok=True)
        aside = target.with_name(f".{target.name}.{uuid.uuid4().hex[:8]}.tmp")
        try:
            fs.get_file(f"{path}/{name}", str(aside))
        except FileNotFoundError as error:
            raise InputError(f"{join(url, name)}: missing, though the manifest lists it; make the {manifest['kind']} again") from error
        os.replace(aside, target)
    if not (folder / MANIFEST).is_file():  # last, since the copy is an artifact of its own that other processes open by its path
        write_json(str(folder / MANIFEST), manifest)
