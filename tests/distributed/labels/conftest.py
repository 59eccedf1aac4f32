"""Processes that are killed in the middle of their work."""

import signal
import subprocess
import sys
import time
from collections.abc import Callable

import pytest


@pytest.fixture
def kill_when() -> Callable[[str, Callable[[], bool]], None]:
    """Runs a script in a process of its own, and kills it when a condition holds, which has to be while it runs."""

    def kill(script: str, is_time: Callable[[], bool]) -> None:
        process, deadline = subprocess.Popen([sys.executable, "-c", script]), time.monotonic() + 120
        while not is_time():
            assert process.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.05)
        process.send_signal(signal.SIGKILL)
        process.wait()

    return kill
