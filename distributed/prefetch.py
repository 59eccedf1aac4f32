"""Makes the next values of an iterator in the background while the caller works on the current value."""

import queue
import threading
from collections.abc import Iterable, Iterator
from typing import TypeVar

from ..core.errors import RunError

Value = TypeVar("Value")
CLOSE_SECONDS = 10.0


class Prefetched(Iterator[Value]):
    """Gives the values of `source` in order, which one thread makes ahead.

    Args:
        source: The thread alone iterates over it; an error in it is raised from `next`.
        depth: The largest number of values that wait for the caller.
        timeout: Longest wait for one value, seconds.
        what: Names a value in the message of a timeout, and may say what to do ("a label block; add hosts for the labelers").
    """

    def __init__(self, source: Iterable[Value], depth: int, timeout: float, what: str) -> None:
        self._source, self._timeout, self._what = source, timeout, what
        self._queue: queue.Queue = queue.Queue(depth)
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._work, daemon=True)
        self._thread.start()

    def _work(self) -> None:
        iterator = iter(self._source)
        try:
            for value in iterator:
                if not self._put((value, None)):
                    break
            else:
                self._put((None, StopIteration()))
        except BaseException as error:
            self._put((None, error))
        finally:
            if hasattr(iterator, "close"):
                iterator.close()

    def _put(self, entry: tuple) -> bool:
        """Waits for room in the queue and puts the entry there; returns False once the caller has called `close`."""
        while not self._closed.is_set():
            try:
                self._queue.put(entry, timeout=0.2)
                return True
            except queue.Full:
                continue
        return False

    def __next__(self) -> Value:
        """Returns the next value.

        Raises:
            RunError: the value did not come within the timeout.
        """
        if self._closed.is_set():
            raise StopIteration
        try:
            value, error = self._queue.get(timeout=self._timeout)
        except queue.Empty:
            self._closed.set()
            raise RunError(f"waited {self._timeout:.0f} seconds for {self._what}") from None
        if error is not None:
            self._closed.set()
            raise error
        return value

    def close(self) -> None:
        """Drops the waiting values and ends the thread, which closes the source."""
        self._closed.set()
        while True:
            try:
                self._queue.get_nowait()
            except queue.Empty:
                break
        self._thread.join(CLOSE_SECONDS)  # a thread that waits for a lost peer ends with the process
