"""The desk between the driver and workers that are kept: one job lies on it at a time, and it runs Ray Train's `fit`.

Protocol
1. The driver posts a job, and looks at the desk twice a second until the job is done or has failed.
2. Every worker joins when its process starts, takes the job that lies there, does it, and hands in its result; then it waits for the
   next one. The job is done when all workers have handed in theirs.
3. A worker that fails takes all workers with it. The controller of Ray Train notes why, and starts them again: they join, take the same
   job, and resume from its checkpoint. A job that failed more than `max_failures` times has failed.
4. An error that a restart cannot mend fails the job at once.
5. `fit` runs in a thread of the desk's process, not of the driver's: a thread that waits for Ray when the driver shuts Ray down ends
   the driver. With the desk go its controller and the workers.
6. Workers that ask a closed desk, or one whose job has failed, leave.
7. The desk knows for how long no worker has run, at the beginning or after a failure; the driver says so, and gives up in time.
"""

import threading
import time
from dataclasses import dataclass
from typing import Any

import ray

from .lines import Lines


@dataclass(frozen=True)
class JobState:
    """What the driver sees of its job.

    Attributes:
        ended: Why Ray Train ended, or None while it runs.
        waiting: Seconds for which no worker has had its resources and run; None where one does.
        done: Whether every worker has finished the job.
        mistake: An error that a restart cannot mend, or None.
        failure: The last failure of a job that failed too often, or None.
        lines: What the workers have to say since the last look.
    """

    ended: str | None
    waiting: float | None
    done: bool
    mistake: str | None
    failure: str | None
    lines: list[str]


class Desk(Lines):
    """Holds the current job of a group of workers; also carries their lines.

    Args:
        num_workers: Workers of the group.
        max_failures: Restarts that a job has.
    """

    def __init__(self, num_workers: int, max_failures: int) -> None:
        super().__init__()
        self.num_workers, self.max_failures = num_workers, max_failures
        self.work: list[ray.ObjectRef] | None = None
        self.closed = self.done = False
        self.waiting_since: float | None = time.monotonic()
        self.results: dict[int, object] = {}
        self.num_failures = 0
        self.broken: str | None = None
        self.ended: str | None = None

    def start_workers(self, train: list[ray.ObjectRef]) -> None:
        """Starts the workers.

        Args:
            train: A reference, in a list, to the function that runs Ray Train until the workers leave.
        """
        threading.Thread(target=self._train, args=train, daemon=True).start()

    def _train(self, train: ray.ObjectRef) -> None:
        try:
            ray.get(train)()
            self.ended = "its workers left"
        except Exception as error:
            self.ended = str(error)

    def post(self, work: list[ray.ObjectRef]) -> None:
        """Puts a job on the desk: a reference in a list, so that it is not opened here."""
        self.work, self.done = work, False
        if self.waiting_since is not None:
            self.waiting_since = time.monotonic()
        self.results, self.num_failures, self.broken = {}, 0, None

    def close(self) -> None:
        """Tells the workers to leave."""
        self.closed = True

    def join(self, rank: int) -> None:
        """Notes a worker that has started, for the first time or again."""
        self.waiting_since = None
        self.results.pop(rank, None)

    def take(self, rank: int) -> tuple[bool, list[ray.ObjectRef] | None]:
        """Whether a worker stays, and its job where it has not finished that."""
        if self.closed or self.failure is not None or self.broken is not None:
            return False, None
        return True, None if rank in self.results else self.work

    def finish(self, rank: int, result: object) -> None:
        """Takes the result of a worker that has done its job; once all have, none that starts again takes it."""
        self.results[rank] = result
        if len(self.results) == self.num_workers:
            self.work, self.done = None, True

    def collect(self) -> list[object]:
        """Returns what the workers handed in, by rank."""
        return [self.results[rank] for rank in range(self.num_workers)]

    def worker_failed(self, message: str) -> None:
        """Notes that the workers ended, and why."""
        self.num_failures += 1
        self.waiting_since = time.monotonic()  # until Ray has started them again
        if self.num_failures > self.max_failures:
            self.broken = self.broken or message

    def look(self) -> JobState:
        """What the driver asks for."""
        waiting = None if self.waiting_since is None else time.monotonic() - self.waiting_since
        return JobState(self.ended, waiting, self.done, self.failure, self.broken, self.drain())


JobDesk: Any = ray.remote(num_cpus=0)(Desk)
