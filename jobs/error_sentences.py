"""Says in a sentence what went wrong where an error is none of promptmm's own: of the system, of storage, of Ray, of DGL.

The command line prints the sentence and keeps the traceback in a file that it names. Errors of promptmm (`InputError`, `RunError`) are
sentences already.
"""

import contextlib
import errno
import os
import sys
import tempfile
import traceback
from pathlib import Path

from ..core.redaction import redacted

GO_ON = "The same command (without run.redo) goes on from what is complete"

_OF_SYSTEM = {
    errno.ENOSPC: "there is no room left on its disk; free some, or set run.dir, cluster.cache_dir or TMPDIR to another disk. " + GO_ON,
    errno.EDQUOT: "your quota on its disk is used up; free some room, or name another place. " + GO_ON,
    errno.EROFS: "its disk can only be read; name a place that can be written to",
    errno.EACCES: "this user may not do that; change the rights, or name another place",
    errno.EPERM: "the system does not allow that to this user; change the rights, or name another place",
    errno.ENOENT: "there is no such file or folder; check the path",
    errno.ENOTDIR: "a part of the path is a file, not a folder; check the path",
    errno.EISDIR: "a folder is there, not a file; name a file",
    errno.ENAMETOOLONG: "the name is too long for the file system; shorten it",
    errno.EMFILE: "this process has too many files open; raise the limit (ulimit -n 65536)",
    errno.ENFILE: "the system has too many files open; close other programs, or raise its limit",
    errno.ENOMEM: "there is not enough memory; see `promptmm plan` for what each process needs",
    errno.EIO: "the disk or the storage failed to read or write; check it. " + GO_ON,
    errno.ECONNREFUSED: "nothing answers at this address; check it, and whether the server runs",
    errno.ETIMEDOUT: "no answer came in time; check the address and the network. " + GO_ON,
    errno.EHOSTUNREACH: "the host cannot be reached; check the address and the network",
    errno.ENETUNREACH: "the network cannot be reached; check it (cluster.private_network=false where a part of yours needs one)",
    errno.ESTALE: "the network file system has lost it; mount it again. " + GO_ON,
}
_STORAGE = ("botocore", "aiobotocore", "aiohttp", "s3fs", "gcsfs", "adlfs", "google", "azure", "paramiko", "requests", "urllib3")
_FULL_DISK = ("FileStream.Write incomplete", "No space left on device")


def sentence_of(error: BaseException) -> str:
    """Says what an error means and what to do about it.

    Args:
        error: Any but promptmm's own.
    """
    chain = _chain(error)
    for each in chain:
        if any(text in str(each) for text in _FULL_DISK):
            return f"{_name_of(each)}{_OF_SYSTEM[errno.ENOSPC]}"
    for each in chain:
        if isinstance(each, MemoryError):
            return f"not enough memory ({each}); see `promptmm plan` for what each process needs"
        package = type(each).__module__.partition(".")[0]
        if package in _STORAGE:
            return f"the storage answered: {_short(each)}; check the URL, the credentials and the network. {GO_ON}"
        if isinstance(each, OSError) and each.errno in _OF_SYSTEM:
            return f"{_name_of(each)}{_OF_SYSTEM[each.errno]}"
        if isinstance(each, (TimeoutError, ConnectionError)):
            return f"no answer came ({_short(each)}); check addresses and the network. {GO_ON}"
    package = type(error).__module__.partition(".")[0]
    if package == "ray":
        return f"Ray failed: {_short(error)}. {GO_ON}"
    if package == "dgl" or type(error).__name__ == "DGLError":
        return f"DGL failed: {_short(error)}. {GO_ON}"
    what = f"{type(error).__name__}: {_short(error)} ({_place_of(error)})"
    if isinstance(error, ModuleNotFoundError):
        return f"{what}; install what your module imports, or start the command from the folder that has it"
    return f"an error that promptmm does not know, or one of a module of your own: {what}; if it is promptmm's, please report its traceback"


def keep_traceback(error: BaseException) -> str:
    """Writes an error's traceback to a file in the system's folder for temporary files; returns the end of a sentence that names it."""
    text = redacted("".join(traceback.format_exception(error)))
    with contextlib.suppress(OSError):
        number, name = tempfile.mkstemp(prefix="promptmm-traceback-", suffix=".txt")
        with os.fdopen(number, "w") as file:
            file.write(text)
        return f" (traceback: {name})"
    print(text, file=sys.stderr)  # no room for a file: it is not lost
    return ""


def _chain(error: BaseException) -> list[BaseException]:
    """An error, and those that it was raised from or while another was handled, the outermost first."""
    found: list[BaseException] = []
    each: BaseException | None = error
    while each is not None and each not in found:
        found.append(each)
        each = each.__cause__ or each.__context__ or getattr(each, "cause", None)
    return found


def _name_of(error: BaseException) -> str:
    name = getattr(error, "filename", None)
    return f"{name}: " if name else f"{_short(error)}: "


def _short(error: BaseException) -> str:
    """An error's message in one line of a screen or two."""
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= 300 else f"{text[:200]} ... {text[-90:]}"


def _place_of(error: BaseException) -> str:
    """Where it was raised."""
    frames = traceback.extract_tb(error.__traceback__)
    return f"{Path(frames[-1].filename).name}, line {frames[-1].lineno}" if frames else "nowhere"
