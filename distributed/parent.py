"""The process that a person starts. It runs the command in a child and outlives it, so that whatever ends the child is said.

Ray ends its driver at once, without an exception that Python could catch, where one of Ray's own processes dies; and an interrupt can end
in a crash in the middle of Ray's shutdown. The parent holds nothing of the run and imports nothing but the standard library.

1. It passes on signals that were sent to it alone, and knows that the command was interrupted. A child that does not end then is ended.
2. It returns the code that the command returned with, which a crash in later clean-up does not change.
3. It says what ended a child that did not return, and starts the command once more where that goes on from what the first one left.
4. It adopts processes whose own parents have ended, and ends those that are left when the command is over.

This needs Linux. Elsewhere a command runs in the process that was started.
"""

import contextlib
import ctypes
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import cast

PARENT_DEATH, CHILD_SUBREAPER = 1, 36  # of <sys/prctl.h>
INTERRUPTS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
INTERRUPTED, FAILED = 130, 1
END_SECONDS = 60.0  # that an interrupted command has to end
AGAIN_SECONDS = 10.0  # after a second interrupt
ONE_INTERRUPT_SECONDS = 1.0  # a group of processes that is interrupted together gets the signal twice: itself, and from the parent
LEFT_SECONDS = 2.0  # that processes which are left have to end by themselves
GO_ON = "the same command (without run.redo) goes on from the last checkpoint"

_to_parent: int | None = None


def has_parent() -> bool:
    """Whether this process runs a command for a parent that outlives it."""
    return _to_parent is not None


def tell_parent(kind: str, text: str = "") -> None:
    """Tells the parent something that it says, or needs, once this process has ended; nothing where there is no parent.

    Args:
        kind: `code` (the command returned, `text` is its exit code), `cause` (what ended this process, in words), `begun` (from here on
            the same command, without run.redo, goes on from what this process leaves), or `logs` (a folder that says more).
        text: One line of less than 4 KiB, so that it is written in one piece.
    """
    if _to_parent is not None:
        with contextlib.suppress(OSError):
            os.write(_to_parent, f"{kind} {text.splitlines()[0][:1000] if text else ''}\n".encode())


def interrupt_main() -> None:
    """Raises KeyboardInterrupt in the main thread, also where that waits in a call of the system.

    A shell starts what it puts in the background with Ctrl-C ignored; the command line takes SIGTERM as Ctrl-C, there too.
    """
    number = signal.SIGTERM if callable(signal.getsignal(signal.SIGTERM)) else signal.SIGINT
    signal.pthread_kill(cast(int, threading.main_thread().ident), number)


def outlive(command: Callable[[list[str]], int], words: list[str]) -> int:
    """Runs a command in a child process, and returns its exit code in both: in the child too, which then ends as any process does.

    Args:
        command: Does the work; returns the exit code.
        words: What it gets.

    Returns:
        The command's exit code; 130 where it was interrupted and did not say anything itself; 1 where something else ended it.
    """
    if not sys.platform.startswith("linux"):
        return command(words)
    ctypes.CDLL(None).prctl(CHILD_SUBREAPER, 1, 0, 0, 0)
    interrupts = [number for number in INTERRUPTS if signal.getsignal(number) != signal.SIG_IGN]  # nohup and shells have some ignored
    blocked = signal.pthread_sigmask(signal.SIG_BLOCK, {*interrupts, signal.SIGCHLD})
    has_tried = False
    while True:
        child = _start()
        if child is None:
            signal.pthread_sigmask(signal.SIG_SETMASK, blocked)
            return _reported(command, words)
        _wait(child, interrupts)
        _end_those_left(child)
        if child.code is not None:
            return child.code
        if child.interrupted is not None:
            _say(f"interrupted; {GO_ON}")
            return INTERRUPTED
        if has_tried or not child.has_begun:
            _say(f"{child.cause}{', once more' if has_tried else ''}; {GO_ON}{child.logs}")
            return FAILED
        _say(f"{child.cause}; the command starts again by itself, this once, and goes on from the last checkpoint")
        has_tried, words = True, [word for word in words if not word.startswith("run.redo=")]


@dataclass
class _Child:
    """A child, and what is known of its end.

    Attributes:
        pid: Its process.
        pipe: Where it tells things.
        status: As `os.waitpid` has it; None while it runs.
        interrupted: When the first interrupt came, by the monotonic clock; None: none did.
        told: What it has told, a text by kind; the first of a kind counts.
    """

    pid: int
    pipe: int
    status: int | None = None
    interrupted: float | None = None
    told: dict[str, str] = field(default_factory=dict)

    @property
    def code(self) -> int | None:
        """The exit code of a command that returned; also of one with an error that Python has printed."""
        return int(self.told["code"]) if "code" in self.told else None

    @property
    def has_begun(self) -> bool:
        """Whether the same command, without run.redo, goes on from what this child left."""
        return "begun" in self.told

    @property
    def cause(self) -> str:
        """What ended it."""
        how = how_it_ended(os.waitstatus_to_exitcode(self.status or 0))
        return self.told.get("cause") or f"the process of this command ended without a word ({how})"

    @property
    def logs(self) -> str:
        """Where to look, as the end of a sentence."""
        return f". Logs: {self.told['logs']}" if "logs" in self.told else ""


def how_it_ended(code: int) -> str:
    """Says how a process ended, from its exit code; a negative one is a signal's number."""
    if code >= 0:
        return f"exit code {code}"
    with contextlib.suppress(ValueError):
        return f"signal {-code}, {signal.Signals(-code).name}"
    return f"signal {-code}"


def _start() -> _Child | None:
    """Forks; None in the child."""
    global _to_parent
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
    here, pipe = os.getpid(), os.pipe()
    pid = os.fork()
    if pid:
        os.close(pipe[1])
        os.set_blocking(pipe[0], False)
        return _Child(pid, pipe[0])
    ctypes.CDLL(None).prctl(PARENT_DEATH, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != here:  # it ended before
        os._exit(FAILED)
    os.close(pipe[0])
    _to_parent = pipe[1]
    return None


def _reported(command: Callable[[list[str]], int], words: list[str]) -> int:
    """Runs the command in the child, and tells the parent how it ended."""
    try:
        code = command(words)
    except KeyboardInterrupt:  # before or after what the command itself watches
        _say(f"interrupted; {GO_ON}")
        code = INTERRUPTED
    except SystemExit as end:
        tell_parent("code", str(end.code if isinstance(end.code, int) else int(end.code is not None)))
        raise
    except BaseException:
        tell_parent("code", str(FAILED))
        raise
    tell_parent("code", str(code))
    return code


def _wait(child: _Child, interrupts: list[signal.Signals]) -> None:
    """Waits for a child's end, passes interrupts on to it, and reaps adopted processes meanwhile."""
    deadline: float | None = None
    while child.status is None:
        seconds = None if deadline is None else max(0.0, deadline - time.monotonic())
        found = _next_signal([*interrupts, signal.SIGCHLD], seconds)
        if found is None:
            _say(f"the command did not end within {time.monotonic() - (child.interrupted or 0):.0f} s of the interrupt, and is ended now")
            os.kill(child.pid, signal.SIGKILL)
            deadline = None
        elif found.si_signo == signal.SIGCHLD:
            _reap(child)
        else:
            now = time.monotonic()
            if child.interrupted is None:
                child.interrupted, deadline = now, now + END_SECONDS
            elif deadline is not None and now > child.interrupted + ONE_INTERRUPT_SECONDS:
                deadline = min(deadline, now + AGAIN_SECONDS)
            if found.si_code <= 0:  # sent by a process, to this one; a terminal sends to the child too
                with contextlib.suppress(ProcessLookupError):
                    os.kill(child.pid, found.si_signo)
    _read(child)


def _next_signal(numbers: list[signal.Signals], seconds: float | None) -> signal.struct_siginfo | None:
    """Waits for one of some blocked signals; None: none came in time."""
    return signal.sigwaitinfo(numbers) if seconds is None else signal.sigtimedwait(numbers, seconds)


def _reap(child: _Child) -> None:
    """Takes the ends of this process's children, adopted ones too."""
    with contextlib.suppress(ChildProcessError):
        while True:
            pid, status = os.waitpid(-1, os.WNOHANG)
            if not pid:
                return
            if pid == child.pid:
                child.status = status


def _read(child: _Child) -> None:
    """Reads what the child has told; processes that it forked may still have the pipe's other end."""
    data = b""
    with contextlib.suppress(BlockingIOError):
        while more := os.read(child.pipe, 1 << 16):
            data += more
    os.close(child.pipe)
    for line in data.decode(errors="replace").splitlines():
        kind, _, text = line.partition(" ")
        child.told.setdefault(kind, text)


def _end_those_left(child: _Child) -> None:
    """Ends processes that outlived the child: asks them to, and a little later kills them."""
    started = time.monotonic()
    asked: set[int] = set()
    while left := [*_children()]:
        is_late = time.monotonic() > started + LEFT_SECONDS
        for pid in left:
            if is_late or pid not in asked:
                asked.add(pid)
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL if is_late else signal.SIGTERM)
        time.sleep(0.02)
        _reap(child)
        if time.monotonic() > started + 5 * LEFT_SECONDS:  # in the kernel, beyond any signal
            return


def _children() -> Iterator[int]:
    """The processes whose parent is this one."""
    here = str(os.getpid())
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit():
            with contextlib.suppress(OSError):
                # pid (name) state parent ...; the name may have spaces and brackets of its own
                if (folder / "stat").read_text().rpartition(")")[2].split()[1] == here:
                    yield int(folder.name)


def _say(text: str) -> None:
    with contextlib.suppress(OSError):
        print(f"promptmm: {text}", file=sys.stderr, flush=True)
