"""Memory of a process: anonymous and shared, without the pages of mapped files, which the system drops when it needs room."""

import resource
import subprocess
import threading
import time

KINDS = ("RssAnon", "RssShmem", "RssFile")


def resident(pid: int | str = "self") -> dict[str, float]:
    """MiB by kind: RssAnon, RssShmem, RssFile; empty where the process is gone."""
    try:
        with open(f"/proc/{pid}/status") as file:
            words = (line.split() for line in file)
            return {word[0][:-1]: int(word[1]) / 1024 for word in words if word and word[0][:-1] in KINDS}
    except (FileNotFoundError, ProcessLookupError):
        return {}


class Peak:
    """The largest anonymous memory of this process since this object was made, MiB, sampled at 20 Hz by a thread.

    Attributes:
        anonymous: So far.
    """

    def __init__(self) -> None:
        self.anonymous = 0.0
        threading.Thread(target=self._watch, daemon=True).start()

    def _watch(self) -> None:
        while True:
            self.anonymous = max(self.anonymous, resident()["RssAnon"])
            time.sleep(0.05)


def run_measured(words: list[str], **more) -> dict[str, float]:
    """Runs a command to its end: `seconds`, `cpu_seconds`, and `peak_mib` of its anonymous and shared memory (sampled at 20 Hz).

    Raises:
        SystemExit: it failed.
    """
    started, before, peak = time.perf_counter(), resource.getrusage(resource.RUSAGE_CHILDREN), 0.0
    with subprocess.Popen(words, **more) as process:
        while process.poll() is None:
            found = resident(process.pid)
            peak = max(peak, found.get("RssAnon", 0) + found.get("RssShmem", 0))
            time.sleep(0.05)
    if process.returncode:
        raise SystemExit(f"{' '.join(words)} failed with {process.returncode}")
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return {"seconds": time.perf_counter() - started, "cpu_seconds": cpu, "peak_mib": peak}
