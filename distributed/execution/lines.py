"""Lines from workers to the terminal of whoever started the run, and the wait for workers that do not start."""

import _thread
import contextlib
import signal
import threading
import time
from collections.abc import Callable, Iterator
from types import FrameType
from typing import Any

import ray
from ray.actor import ActorHandle

from ...core.errors import RunError

POLL_SECONDS = 0.5
CALL_SECONDS = 60.0


class Lines:
    """Carries lines from workers to the driver, which prints them."""

    def __init__(self) -> None:
        self.lines: list[str] = []
        self.started = False
        self.failure: str | None = None

    def reset(self) -> None:
        """Forgets an earlier job."""
        self.started, self.failure = False, None

    def fail(self, message: str) -> None:
        """Notes an error that a restart cannot mend; the first one counts."""
        self.failure = self.failure or message

    def failed(self) -> str | None:
        """The message of such an error, or None."""
        return self.failure

    def start(self) -> None:
        """Notes that workers have their resources and run."""
        self.started = True

    def has_started(self) -> bool:
        """Whether any worker runs."""
        return self.started

    def add(self, line: str) -> None:
        """Queues a line."""
        self.lines.append(line)

    def drain(self) -> list[str]:
        """The lines since the last call."""
        lines, self.lines = self.lines, []
        return lines


ProgressLines: Any = ray.remote(num_cpus=0)(Lines)


def shown_by(lines: ActorHandle) -> Callable[[str], None]:
    """What shows a line on the driver's terminal, from any process."""

    def show(line: str) -> None:
        lines.add.remote(line)

    return show


def start_progress() -> ActorHandle:
    """The actor that carries lines from the workers to the driver."""
    actor: ActorHandle = ProgressLines.remote()
    return actor


@contextlib.contextmanager
def watching(lines: ActorHandle, start_timeout: float, needs: str) -> Iterator[None]:
    """Prints the workers' lines while the block runs, and interrupts it where no worker has started in time.

    Raises:
        RunError: the cluster did not give the workers their resources within `start_timeout` seconds.
    """
    ray.get(lines.reset.remote(), timeout=CALL_SECONDS)
    done, late = threading.Event(), threading.Event()
    deadline = time.monotonic() + start_timeout

    def show() -> None:
        started = False
        while True:
            last = done.wait(POLL_SECONDS)
            try:
                if not started and not late.is_set() and time.monotonic() > deadline:
                    started = ray.get(lines.has_started.remote(), timeout=CALL_SECONDS)
                    if not started and not last:
                        late.set()
                        _thread.interrupt_main()
                for line in ray.get(lines.drain.remote(), timeout=10):
                    print(line, flush=True)
            except (ray.exceptions.RayError, TimeoutError):
                pass  # a busy actor: the next round brings the lines
            if last:
                return

    def interrupt(signum: int, frame: FrameType | None) -> None:
        if late.is_set():
            raise KeyboardInterrupt

    # A shell starts what it puts in the background with SIGINT ignored: then `interrupt_main` would do nothing.
    deaf = threading.current_thread() is threading.main_thread() and signal.getsignal(signal.SIGINT) == signal.SIG_IGN
    if deaf:
        signal.signal(signal.SIGINT, interrupt)
    thread = threading.Thread(target=show, daemon=True)
    thread.start()
    try:
        yield
    except KeyboardInterrupt:
        if late.is_set():
            raise RunError(
                f"no worker started within cluster.start_timeout={start_timeout:.0f} seconds: the cluster has no room for {needs}; "
                "add hosts, ask for fewer workers, or raise the timeout"
            ) from None
        raise
    finally:
        done.set()
        thread.join(timeout=15)
        if deaf:
            signal.signal(signal.SIGINT, signal.SIG_IGN)
