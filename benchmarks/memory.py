"""Memory of a process: anonymous and shared, without the pages of mapped files, which the system drops when it needs room.

Tests that measure memory use it too.
"""

import resource
import subprocess
import threading
import time
from collections.abc import Callable

KINDS = ("RssAnon", "RssShmem", "RssFile")


def resident(pid: int | str = "self") -> dict[str, float]:
    """MiB by kind: RssAnon, RssShmem, RssFile; empty where the process is gone."""
    try:
        with open(f"/proc/{pid}/status") as file:
            words = (line.split() for line in file)
            return {word[0][:-1]: int(word[1]) / 1024 for word in words if word and word[0][:-1] in KINDS}
    except (FileNotFoundError, ProcessLookupError):
        return {}


def anonymous_and_shared(pid: int | str = "self") -> float:
    """MiB; 0 where the process is gone."""
    found = resident(pid)
    return found.get("RssAnon", 0.0) + found.get("RssShmem", 0.0)


class Peak:
    """The largest memory of this process since this object was made, MiB, sampled by a thread.

    Args:
        read: What is sampled, MiB.
        interval: Seconds between samples.

    Attributes:
        base: At the start.
        highest: So far.
    """

    def __init__(self, read: Callable[[], float], interval: float) -> None:
        self._read, self._interval = read, interval
        self.base = self.highest = read()
        threading.Thread(target=self._watch, daemon=True).start()

    def _watch(self) -> None:
        while True:
            self.highest = max(self.highest, self._read())
            time.sleep(self._interval)


def run_measured(words: list[str], **more) -> dict[str, float]:
    """Runs a command to its end: `seconds`, `cpu_seconds`, and `peak_mib` of its anonymous and shared memory (sampled at 20 Hz).

    Raises:
        SystemExit: it failed.
    """
    started, before, peak = time.perf_counter(), resource.getrusage(resource.RUSAGE_CHILDREN), 0.0
    with subprocess.Popen(words, **more) as process:
        while process.poll() is None:
            peak = max(peak, anonymous_and_shared(process.pid))
            time.sleep(0.05)
    if process.returncode:
        raise SystemExit(f"{' '.join(words)} failed with {process.returncode}")
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return {"seconds": time.perf_counter() - started, "cpu_seconds": cpu, "peak_mib": peak}
