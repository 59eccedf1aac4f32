"""The lease of a run's folder: one command at a time writes there.

The file .lease.json in the folder names its holder. In a local folder the holder has a lock of the operating system on it, which ends with
its process, however that ends. Object storage has no such locks: there the file is created only where none is (a conditional write), its
holder writes it again every ten seconds, and one that has not changed while another command watched it for 45 seconds is taken over.
Storage that ignores the condition of a write lets two commands begin that start in the same moment; the one whose file was overwritten
notices at its next renewal, and ends.
"""

import contextlib
import errno
import fcntl
import json
import os
import socket
import threading
import time
import uuid
from collections.abc import Iterator
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from ...core.errors import InputError, RunError
from ...core.storage import JsonObject, filesystem, is_local, join, local_path, naming
from ...distributed.parent import interrupt_main
from ...distributed.progress import saying_if_slow, show_here

FILE = ".lease.json"
ENDING_SECONDS = 3.0  # that the process of a holder which was just killed has to end
RENEW_SECONDS = 10.0
WATCH_SECONDS = 45.0
GIVE_BACK_SECONDS = 30.0  # at most, where the storage does not answer
LOOK_SECONDS = 1.0
NO_LOCKS = (errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL)  # of file systems without locks


@contextlib.contextmanager
def lease(run_dir: str, verb: str) -> Iterator[None]:
    """Holds a run's folder while the block runs.

    Args:
        run_dir: The folder, made where it is missing. One in this process's memory needs no lease.
        verb: What holds it, for the message that another command prints.

    Raises:
        InputError: another command holds it, or the folder cannot be written to.
        RunError: on object storage, another command has taken the lease over: this process was not heard of for too long.
    """
    if run_dir.startswith("memory://"):
        yield
    elif is_local(run_dir):
        with _locked(run_dir, verb):
            yield
    else:
        with _renewed(run_dir, verb):
            yield


def _holder(verb: str) -> JsonObject:
    now = datetime.now(timezone.utc).isoformat(timespec="seconds")
    return {"command": verb, "host": socket.gethostname(), "pid": os.getpid(), "since": now, "token": uuid.uuid4().hex, "renewed": 0}


def _refused(run_dir: str, holder: JsonObject) -> InputError:
    who = f"promptmm {holder.get('command', '')} (process {holder.get('pid')} on {holder.get('host')}, since {holder.get('since')})"
    return InputError(
        f"{run_dir}: {who if holder else 'another command'} works in this folder, and two would overwrite each other's files; wait until "
        "it has ended, or use another run.dir"
    )


def _parsed(data: bytes) -> JsonObject:
    """What a lease's file says; nothing where it is cut or another's."""
    with contextlib.suppress(ValueError):
        found = json.loads(data)
        if isinstance(found, dict):
            return found
    return {}


@contextlib.contextmanager
def _locked(run_dir: str, verb: str) -> Iterator[None]:
    """Holds a local folder by a lock on the lease's file."""
    path = local_path(run_dir) / FILE
    is_new = not path.parent.exists()
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        file = _lock(run_dir, path)
    except OSError as error:
        if error.errno not in NO_LOCKS:
            raise InputError(
                f"run.dir={run_dir}: {verb} cannot write there ({error.strerror}); name a folder that it can write to"
            ) from error
        with _renewed(run_dir, verb):
            yield
        return
    try:
        with naming(path):
            os.ftruncate(file, 0)
            os.write(file, json.dumps(_holder(verb)).encode())
        yield
    finally:
        with contextlib.suppress(OSError):
            path.unlink()  # while it is locked: whoever waits for it looks whether it is still the folder's
        os.close(file)
        if is_new:
            with contextlib.suppress(OSError):  # not empty: the command was not refused before it made anything
                path.parent.rmdir()


def _lock(run_dir: str, path: Path) -> int:
    """Opens the lease's file and locks it."""
    deadline = time.monotonic() + ENDING_SECONDS
    while True:
        file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            with contextlib.suppress(FileNotFoundError):
                if os.path.samestat(os.fstat(file), path.stat()):
                    return file
        except BlockingIOError:
            if time.monotonic() > deadline:
                holder = _parsed(os.read(file, 1 << 16))
                os.close(file)
                raise _refused(run_dir, holder) from None
            time.sleep(0.1)
        except BaseException:
            if not os.fstat(file).st_size:  # made just now: on a file system without locks it would look like a lease that somebody left
                path.unlink(missing_ok=True)
            os.close(file)
            raise
        os.close(file)


def _has_ended(holder: JsonObject) -> bool:
    """Whether the process of a holder ran on this host and has ended; another's number may be the same by now, which counts as not."""
    is_here = holder.get("host") == socket.gethostname() and isinstance(holder.get("pid"), int)
    return is_here and Path("/proc/self").exists() and not Path(f"/proc/{holder['pid']}").exists()


@contextlib.contextmanager
def _renewed(run_dir: str, verb: str) -> Iterator[None]:
    """Holds a folder of object storage by a file that is written again and again."""
    url, holder = join(run_dir, FILE), _holder(verb)
    fs, path = filesystem(url)
    _take(run_dir, fs, path, holder)
    over, lost = threading.Event(), threading.Event()

    def renew() -> None:
        while not over.wait(RENEW_SECONDS):
            with contextlib.suppress(Exception):  # storage that does not answer for a while: the next time
                found = _parsed(fs.cat_file(path))
                if found and found.get("token") != holder["token"]:
                    lost.set()
                    interrupt_main()
                    return
                holder["renewed"] += 1
                fs.pipe_file(path, json.dumps(holder).encode())
        with contextlib.suppress(Exception):  # here, so that no renewal comes after it
            fs.rm_file(path)

    thread = threading.Thread(target=renew, name="lease", daemon=True)
    thread.start()
    try:
        yield
    except KeyboardInterrupt:
        if lost.is_set():
            raise RunError(
                f"{run_dir}: another command has taken this folder over, since this one did not renew its lease for {WATCH_SECONDS:.0f} s; "
                "what was finished before stays"
            ) from None
        raise
    finally:
        over.set()
        thread.join(GIVE_BACK_SECONDS)


def _take(run_dir: str, fs: Any, path: str, holder: JsonObject) -> None:
    """Creates the lease's file; takes one over whose holder is dead, or was not heard of while this process watched.

    Raises:
        InputError: its holder renews it.
    """
    first: JsonObject | None = None
    with saying_if_slow(
        show_here, f"waiting up to {WATCH_SECONDS:.0f} s: {run_dir} has the lease of a command that may have ended abruptly"
    ):
        started = time.monotonic()
        while not _create(fs, path, holder):
            found = _read(fs, path)
            if found is None:
                continue
            if first is None or found.get("token") != first.get("token"):
                first, started = found, time.monotonic()
            if found.get("renewed") != first.get("renewed"):
                raise _refused(run_dir, found)
            if _has_ended(found) or time.monotonic() > started + WATCH_SECONDS:
                with contextlib.suppress(FileNotFoundError):
                    fs.rm_file(path)
                continue
            time.sleep(LOOK_SECONDS)


def _create(fs: Any, path: str, holder: JsonObject) -> bool:
    """Writes the lease's file where there is none; whether it did."""
    fs.invalidate_cache()
    if fs.exists(path):
        return False
    data = json.dumps(holder).encode()
    try:
        fs.pipe_file(path, data, mode="create")
    except FileExistsError:
        return False
    except (NotImplementedError, TypeError, ValueError):  # a file system without conditional writes
        fs.pipe_file(path, data)
    return True


def _read(fs: Any, path: str) -> JsonObject | None:
    try:
        return _parsed(fs.cat_file(path))
    except FileNotFoundError:
        return None
