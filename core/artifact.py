"""Reads and writes artifacts on any fsspec URL: an artifact is complete or absent, and is verified when it is read.

An artifact is a folder with a `manifest.json` that lists every other file with its size and SHA-256. On a local file system it is
written beside its place and renamed; on an object store the manifest is uploaded last. A reader therefore never sees a half-written
artifact.

Checksums of large files take seconds a GiB, and every process that opens a bundle would compute them again. A large file that was verified
is therefore noted in `.verified.json` beside it, with the facts of the file system that change when anybody writes to it or puts another
file in its place; as long as they are the same, the file counts as verified.
"""

import contextlib
import hashlib
import json
import os
import re
import shutil
import stat
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from .errors import InputError
from .redaction import redacted_tree
from .storage import exists, filesystem, is_local, join, local_path, naming, read_json, remove, write_bytes, write_json

SCHEMA_VERSION = 1
MANIFEST = "manifest.json"
VERIFIED = ".verified.json"
DIGEST = "digest"  # the manifest's own, in it
LARGE_FILE = 1 << 26  # bytes: what is smaller is verified each time, in a twentieth of a second
SETTLED_SECONDS = 2.0  # a file that changed less than this ago could change again and keep the time of change
VERIFY = ("changed", "all", "sizes")

Looks = dict[str, int]  # what the file system says of a file: bytes, inode, and when content (ns) and anything (ns) was last changed


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
        if path.is_file() and path.name not in (MANIFEST, VERIFIED)
    }


def _looks_of(path: Path) -> Looks:
    facts = path.stat()
    return {"bytes": facts.st_size, "inode": facts.st_ino, "modified_ns": facts.st_mtime_ns, "changed_ns": facts.st_ctime_ns}


def _looks_of_large(root: Path) -> dict[str, Looks]:
    """Returns what large files below `root` look like, by relative name."""
    files = {path.relative_to(root).as_posix(): path for path in root.rglob("*") if path.is_file()}
    return {name: _looks_of(path) for name, path in files.items() if path.stat().st_size >= LARGE_FILE}


def _read_verified(folder: Path) -> dict[str, dict]:
    """Reads which large files of a folder were verified: for each its checksum and what it looked like; a damaged note says nothing."""
    with contextlib.suppress(InputError, OSError):
        noted: Any = read_json(str(folder / VERIFIED))
        return noted if isinstance(noted, dict) else {}
    return {}


def _note_verified(folder: Path, files: dict[str, dict]) -> None:
    """Notes large files that were verified, unless they have changed meanwhile or only just; a folder that is read-only gets no note.

    Args:
        folder: The artifact's files.
        files: For each its `sha256`, and what it looked like before it was read.
    """
    latest = time.time_ns() - int(SETTLED_SECONDS * 1e9)
    with contextlib.suppress(OSError):
        settled = {
            name: facts
            for name, facts in files.items()
            if facts["changed_ns"] <= latest and {**_looks_of(folder / name), "sha256": facts["sha256"]} == facts
        }
        if settled:
            write_json(str(folder / VERIFIED), {**_read_verified(folder), **settled})


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
        staging = target.with_name(f".{target.name}.{uuid.uuid4().hex[:8]}.tmp")
        staging.mkdir()  # its mode follows the umask, as those of its files do
    else:
        staging = Path(tempfile.mkdtemp(prefix="promptmm-"))
    try:
        with naming(staging):
            yield staging
        large = _looks_of_large(staging)
        manifest = _manifest(kind, metadata, describe_files(staging))
        if is_local(url):
            _note_verified(staging, {name: {**looks, "sha256": manifest["files"][name]["sha256"]} for name, looks in large.items()})
            write_json(str(staging / MANIFEST), manifest)
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
    metadata = {key: value for key, value in manifest.items() if key not in ("schema_version", "kind", "files", DIGEST)}
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
    manifest = {"schema_version": SCHEMA_VERSION, "kind": kind, **redacted_tree(metadata), "files": files}
    manifest = json.loads(json.dumps(manifest))  # as it is read again
    return sealed(manifest)


def has_artifact(url: str) -> bool:
    """Returns whether a complete artifact is at `url`."""
    return exists(join(url, MANIFEST))


def read_manifest(url: str, kind: str) -> dict:
    """Returns the manifest of the artifact at `url`.

    Raises:
        InputError: there is no artifact, it is of another kind, it was written by an incompatible version, or its manifest was changed.
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
    if DIGEST in manifest and manifest[DIGEST] != manifest_digest(manifest):  # those of earlier versions have none
        raise InputError(f"{join(url, MANIFEST)}: changed since it was written (it does not match its own digest); make the {kind} again")
    _check_files(url, manifest)
    return manifest


def _check_files(url: str, manifest: dict) -> None:
    """Checks the names and facts of a manifest's files: whoever wrote it must not reach anything outside the artifact's folder.

    Raises:
        InputError: a name is absolute, leads out of the folder or is kept for this module's own files, or a size or checksum is none.
    """
    files = manifest.get("files")
    if not isinstance(files, dict):
        raise InputError(f"{url}: the manifest has no table of files; fetch the artifact again, or make it again")
    for name, facts in files.items():
        parts = name.split("/")
        is_inside = not any(part in ("", ".", "..") or part.endswith(":") for part in parts) and not set(name) & set("\\\0")
        if not is_inside or parts[-1] in (MANIFEST, VERIFIED):
            raise InputError(
                f"{url}: the manifest names the file {name!r}, which is none inside the artifact's folder; do not use an artifact from a "
                "source that you do not trust"
            )
        size, digest = (facts.get("bytes"), facts.get("sha256")) if isinstance(facts, dict) else (None, None)
        if type(size) is not int or size < 0 or not isinstance(digest, str) or not re.fullmatch("[0-9a-f]{64}", digest):
            raise InputError(
                f"{url}: the manifest has no size and SHA-256 of the file {name!r}; fetch the artifact again, or make it again"
            )


def sealed(manifest: dict) -> dict:
    """Returns a manifest with its own digest, by which readers notice that it was damaged."""
    return {**manifest, DIGEST: manifest_digest(manifest)}


def manifest_digest(manifest: dict) -> str:
    """Returns the SHA-256 of a manifest without its own digest, and so of everything that the artifact holds; lineage consists of these."""
    content = {key: value for key, value in manifest.items() if key != DIGEST}
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def open_artifact(
    url: str,
    kind: str,
    cache_dir: str | None = None,
    wanted: Callable[[str], bool] = lambda name: True,
    verify: str = "changed",
    check: Callable[[Path], None] = lambda path: None,
) -> tuple[Path, dict]:
    """Verifies the artifact at `url`; returns a local folder that holds its files, and its manifest.

    A local artifact is used where it is. A remote one is downloaded once.

    Args:
        url: The artifact.
        kind: The kind that it must have.
        cache_dir: Folder for the local copy of a remote artifact; the system's temporary folder by default.
        wanted: Whether a file, by its relative name, is needed; the others are neither fetched nor verified.
        verify: Of which files the checksum is computed, where the size is right. "changed": all but large ones (`LARGE_FILE`) that were
            verified here and have not been changed since. "all". "sizes": all but large ones.
        check: Looks at the content of each file whose checksum was computed and is right; raises InputError.

    Raises:
        InputError: the artifact is missing, a file is missing, truncated or changed since it was written, or `check` refuses one.
    """
    if verify not in VERIFY:
        raise InputError(f"verify={verify!r}: expected one of {', '.join(VERIFY)}")
    manifest = read_manifest(url, kind)
    folder = local_path(url) if is_local(url) else _cache(cache_dir) / manifest_digest(manifest)[:24]
    _check_links(url, folder, [name for name in manifest["files"] if wanted(name)])
    wrong = _not_as_described(folder, {name: facts for name, facts in manifest["files"].items() if wanted(name)}, verify, check)
    if wrong and not is_local(url):
        _download(url, folder, manifest, wrong)
        wrong = _not_as_described(folder, {name: manifest["files"][name] for name in wrong}, "all", check)
    for name in wrong:
        if not (folder / name).is_file():
            raise InputError(f"{join(url, name)}: missing, though the manifest lists it; make the {kind} again")
        raise InputError(f"{join(url, name)}: checksum does not match the manifest (truncated or changed); make the {kind} again")
    return folder, manifest


def _cache(cache_dir: str | None) -> Path:
    """Returns the folder of local copies, made where it is missing.

    Raises:
        InputError: everybody can write to it, or the default one is a link, belongs to somebody else or can be written by a group: whoever
            puts files there could change them after they have been verified.
    """
    base = Path(cache_dir) if cache_dir else Path(tempfile.gettempdir()) / f"promptmm-cache-{os.getuid()}"
    if cache_dir:
        base.mkdir(parents=True, exist_ok=True)
        is_safe = not base.stat().st_mode & stat.S_IWOTH
    else:
        with contextlib.suppress(FileExistsError):
            base.mkdir(0o700)
        facts = base.lstat()
        is_safe = stat.S_ISDIR(facts.st_mode) and facts.st_uid == os.getuid() and not facts.st_mode & (stat.S_IWGRP | stat.S_IWOTH)
    if not is_safe:
        raise InputError(
            f"{base}: others can change what is in this folder, which is for copies of remote artifacts; remove it, take their rights to "
            "write there away, or set cluster.cache_dir to a folder of your own, such as a new one in it"
        )
    return base


def _check_links(url: str, folder: Path, names: list[str]) -> None:
    """Raises InputError where a file of an artifact is reached over a link that leads out of its folder."""
    root = folder.resolve()
    for name in names:
        if not (folder / name).resolve().is_relative_to(root):
            raise InputError(
                f"{join(url, name)}: a link that leads out of the artifact's folder; put the file itself there, or do not use an artifact "
                "from a source that you do not trust"
            )


def _not_as_described(folder: Path, files: dict[str, dict], verify: str, check: Callable[[Path], None]) -> list[str]:
    """Returns the names of files that `folder` lacks, or that have another size or checksum than `files` lists; notes large right ones."""
    noted, newly, wrong = _read_verified(folder) if verify == "changed" else {}, {}, []
    for name, expected in files.items():
        path = folder / name
        if not path.is_file() or path.stat().st_size != expected["bytes"]:
            wrong.append(name)
            continue
        is_large, facts = expected["bytes"] >= LARGE_FILE, {**_looks_of(path), "sha256": expected["sha256"]}
        if is_large and (verify == "sizes" or noted.get(name) == facts):
            continue
        if sha256_of(path) != expected["sha256"]:
            wrong.append(name)
            continue
        check(path)
        if is_large:
            newly[name] = facts
    _note_verified(folder, newly)
    return wrong


def _download(url: str, folder: Path, manifest: dict, names: list[str]) -> None:
    fs, path = filesystem(url)
    for name in names:
        target = folder / name
        target.parent.mkdir(parents=True, exist_ok=True)
        aside = target.with_name(f".{target.name}.{uuid.uuid4().hex[:8]}.tmp")
        try:
            size = fs.info(f"{path}/{name}")["size"]
            if size != manifest["files"][name]["bytes"]:  # before it fills the disk
                raise InputError(
                    f"{join(url, name)}: checksum does not match the manifest (truncated or changed); make the {manifest['kind']} again"
                )
            fs.get_file(f"{path}/{name}", str(aside))
        except FileNotFoundError as error:
            raise InputError(f"{join(url, name)}: missing, though the manifest lists it; make the {manifest['kind']} again") from error
        os.replace(aside, target)
    if not (folder / MANIFEST).is_file():  # last, since the copy is an artifact of its own that other processes open by its path
        write_json(str(folder / MANIFEST), manifest)
