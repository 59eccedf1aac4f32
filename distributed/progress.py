"""Says how far long work is, for stages that are no training (labels, rankings and lists), and what is being waited for."""

import contextlib
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from typing import TypeVar

from .loop.recorder import LINE_SECONDS, print_line

T = TypeVar("T")
SLOW_SECONDS = 3.0


def show_here(line: str) -> None:
    """Prints a line on the driver's terminal."""
    print(line, flush=True)


@contextlib.contextmanager
def saying_if_slow(show: Callable[[str], None], line: str) -> Iterator[None]:
    """Says what is being waited for, where the block takes more than a few seconds."""
    timer = threading.Timer(SLOW_SECONDS, show, [line])
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


def with_progress(parts: Iterable[T], stage: str, what: str, total: int, size: Callable[[T], int] = lambda part: 1) -> Iterator[T]:
    """Yields parts as they are done; every `LINE_SECONDS` it shows how much of all there is, the rate, and the time that is left.

    Args:
        parts: The parts, in the order in which they are done.
        stage: Name of the verb, for the line.
        what: What is counted, in the singular, for the line.
        total: How many of them all parts have together.
        size: How many of them a part has; 1 by default.
    """
    said = started = time.monotonic()
    done = 0
    for part in parts:
        yield part
        done, now = done + size(part), time.monotonic()
        if now - said >= LINE_SECONDS and done < total:
            said, rate = now, done / (now - started)
            print_line(f"[{stage}] {what} {done}/{total}, {rate:.1f} {what}s/s, {(total - done) / rate:.0f} s left")
