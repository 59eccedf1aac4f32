"""Reads, writes and removes files by fsspec URL."""

import contextlib
import errno
import json
import os
import stat
import tempfile
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TypeAlias

from .errors import InputError
from .redaction import has_hidden, redacted_tree

OF_DISKS = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO, errno.EROFS)
JsonObject: TypeAlias = dict[str, Any]  # a JSON object, as records, manifests and settings have it on disk


def filesystem(url: str) -> tuple[Any, str]:
    """Returns the fsspec file system of `url` and the path inside it.

    Raises:
        InputError: the protocol is unknown, its package (s3fs, gcsfs, ...) is not installed, or the URL is a saved one whose credentials
            were left out.
    """
    import fsspec

    if has_hidden(url):
        raise InputError(
            f"{url}: passwords and tokens are not saved with a run, so this URL cannot be opened; give it once more as key=value, or keep "
            "credentials in the environment or in fsspec's configuration, where URLs need none"
        )
    try:
        return fsspec.core.url_to_fs(url)
    except (ValueError, ImportError) as error:
        raise InputError(f"{url}: cannot open this URL ({error}); install the package it names or use another URL") from error


def is_local(url: str) -> bool:
    """Returns whether `url` is a path on this machine's file system."""
    return "://" not in url or url.startswith("file://")


def same_place(first: str, second: str) -> bool:
    """Returns whether two URLs or paths name the same place, as far as their text and local links tell."""
    if is_local(first) and is_local(second):
        return local_path(first).resolve() == local_path(second).resolve()
    return first.rstrip("/") == second.rstrip("/")


def local_path(url: str) -> Path:
    """Returns the absolute path of a local URL."""
    return Path(url.removeprefix("file://")).expanduser().absolute()


def join(url: str, *names: str) -> str:
    """Returns `url` with path components appended."""
    return "/".join([url.rstrip("/"), *names])


def exists(url: str) -> bool:
    """Returns whether there is a file or folder at `url`."""
    fs, path = filesystem(url)
    return fs.exists(path)


def remove(url: str) -> None:
    """Deletes the file or folder tree at `url`, if there is one."""
    fs, path = filesystem(url)
    if fs.exists(path):
        fs.rm(path, recursive=True)


def readable_file(path: Path, name: str | None = None) -> Path:
    """Returns the path of a local file, after a look at whether it can be read: a pipe that nobody writes to would be waited for for ever.

    Args:
        path: The file.
        name: What messages call it; its path by default.

    Raises:
        InputError: there is none, it is a folder, a pipe, a socket or a device, or this user may not read it.
    """
    try:
        mode = path.stat().st_mode
    except FileNotFoundError as error:
        raise InputError(f"{name or path}: no such file") from error
    except OSError as error:
        raise InputError(f"{name or path}: cannot be read ({error.strerror}); check the path") from error
    if stat.S_ISDIR(mode):
        raise InputError(f"{name or path}: a folder, not a file; name a file")
    if not stat.S_ISREG(mode):
        raise InputError(f"{name or path}: a pipe, a socket or a device, which has no end; write its content into a file and name that")
    if not os.access(path, os.R_OK):
        raise InputError(f"{name or path}: this user may not read it; change its rights (chmod)")
    return path


def read_bytes(url: str) -> bytes:
    """Returns the content of one file.

    Raises:
        InputError: there is none, or it cannot be read.
    """
    if url and is_local(url):
        return readable_file(local_path(url), url).read_bytes()
    fs, path = filesystem(url)
    try:
        return fs.cat_file(path)
    except FileNotFoundError as error:
        raise InputError(f"{url}: no such file") from error
    except IsADirectoryError as error:
        raise InputError(f"{url or 'an empty URL'}: a folder, not a file; name a file") from error


def write_bytes(url: str, data: bytes) -> None:
    """Writes one file so that a reader of a local one sees the old content or the new, never a part of it."""
    if is_local(url):
        with staged_file(url) as aside:
            aside.write_bytes(data)
    else:
        fs, path_in_fs = filesystem(url)
        fs.pipe_file(path_in_fs, data)


@contextlib.contextmanager
def naming(path: Path) -> Iterator[None]:
    """Gives errors of disks that name no file, as a full one's does, the name of what the block writes."""
    try:
        yield
    except OSError as error:
        if error.filename is None and error.errno in OF_DISKS:
            error.filename = str(path)
        raise


@contextlib.contextmanager
def staged_file(url: str) -> Iterator[Path]:
    """Lends the path of a local file to write, which becomes the file at `url` when the block ends; after an error it is removed.

    A reader of a local `url` sees the old content or the new, never a part of it. The file for a remote `url` is written in the folder for
    temporary files, and then copied: what a reader sees meanwhile, and what an interrupted copy leaves, depends on the file system.

    Raises:
        InputError: there is a folder at the local `url`.
    """
    if is_local(url):
        path = local_path(url)
        if path.is_dir():
            raise InputError(f"{url}: a folder is there; name a file")
        path.parent.mkdir(parents=True, exist_ok=True)
        aside = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}.tmp")
        try:
            with naming(path):
                yield aside
                os.replace(aside, path)
        finally:
            aside.unlink(missing_ok=True)
    else:
        fs, path_in_fs = filesystem(url)
        with tempfile.TemporaryDirectory(prefix="promptmm-") as folder:
            aside = Path(folder) / "file"
            yield aside
            fs.put_file(str(aside), path_in_fs)


def read_json(url: str) -> dict:
    """Returns a JSON file's content."""
    try:
        return json.loads(read_bytes(url))
    except (json.JSONDecodeError, UnicodeDecodeError, RecursionError) as error:  # the last one: brackets without end
        raise InputError(f"{url}: not valid JSON ({error})") from error


def write_json(url: str, value: Any) -> None:
    """Writes `value` as indented JSON, in one piece; credentials in URLs are left out (`redaction.py`)."""
    write_bytes(url, (json.dumps(redacted_tree(value), indent=1, sort_keys=True) + "\n").encode())
