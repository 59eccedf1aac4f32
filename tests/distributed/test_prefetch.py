"""Values made in the background: order, errors, deadlines, and a thread that ends."""

import threading
import time

import pytest
from promptmm.core.errors import RunError
from promptmm.distributed.prefetch import Prefetched


def test_values_come_in_order_and_end():
    values = Prefetched(range(20), 3, 10.0, "a number")
    assert list(values) == list(range(20))
    assert list(values) == []


def test_at_most_depth_values_wait():
    made = []

    def source():
        for number in range(100):
            made.append(number)
            yield number

    values = Prefetched(source(), 2, 10.0, "a number")
    assert next(values) == 0
    deadline = time.monotonic() + 10
    while len(made) < 4 and time.monotonic() < deadline:
        time.sleep(0.01)
    time.sleep(0.3)
    assert len(made) == 4  # one taken, two waiting, one in the thread's hand
    values.close()


def test_an_error_of_the_source_is_raised():
    def source():
        yield 1
        raise OSError("disk")

    values = Prefetched(source(), 2, 10.0, "a number")
    assert next(values) == 1
    with pytest.raises(OSError, match="disk"):
        next(values)


def test_a_late_value_is_an_error_that_names_it():
    release = threading.Event()

    def source():
        release.wait(30)
        yield 1

    values = Prefetched(source(), 2, 0.2, "a block of labels")
    with pytest.raises(RunError, match="waited 0 seconds for a block of labels"):
        next(values)
    release.set()


def test_close_ends_the_thread_and_closes_the_source():
    closed = threading.Event()

    def source():
        try:
            while True:
                yield 1
        finally:
            closed.set()

    values = Prefetched(source(), 1, 10.0, "a number")
    next(values)
    values.close()
    assert closed.is_set()
    assert list(values) == []
