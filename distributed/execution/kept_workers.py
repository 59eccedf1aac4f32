"""Ray Train workers that are kept between the jobs of one command, on a cluster that lives as long as the command.

One `fit` of Ray Train runs all the time; its loop takes jobs from a desk (desk.py), so that only the first job waits for workers.
"""

import gc
import time
from collections.abc import Callable
from typing import TypeVar, cast

import ray
from ray.actor import ActorHandle
from ray.train import UserCallback

from ...core.errors import InputError, RunError
from ...core.storage import join, remove
from ..config import ClusterConfig
from ..progress import SLOW_SECONDS
from .desk import JobDesk, JobState
from .launch import explain, make_trainer, needs_of, noting_mistakes, ray_folder, unique_name
from .lines import CALL_SECONDS, POLL_SECONDS

IDLE_SECONDS = 0.05  # how often a worker without a job asks for one
LEAVE_SECONDS = 60.0


Result = TypeVar("Result")


class FailureNotes(UserCallback):
    """Runs in Ray Train's controller, and tells the desk why workers ended."""

    def __init__(self, desk: ActorHandle) -> None:
        self.desk = desk

    def after_exception(self, run_context: object, worker_exceptions: dict[int, Exception]) -> None:
        """See `UserCallback`."""
        ray.get(self.desk.worker_failed.remote(str(next(iter(worker_exceptions.values())))), timeout=CALL_SECONDS)


class KeptWorkers:
    """A group of workers that does one job after the other.

    Args:
        config: The workers.
        run_url: The run's folder.

    Attributes:
        are_usable: Whether no job has failed.
    """

    def __init__(self, config: ClusterConfig, run_url: str) -> None:
        self.config, self.run_url = config, run_url
        self.desk: ActorHandle = JobDesk.remote(config.num_workers, config.max_failures)
        self.are_usable = True
        self._name = unique_name("workers")
        self._have_started = False

    def start(self) -> None:
        """Starts the workers, which then wait for a job; does not wait for them."""
        self._have_started = True
        config, run_url, name, desk = self.config, self.run_url, self._name, self.desk

        def train() -> None:
            make_trainer(_loop_of(desk), config, run_url, name, -1, [FailureNotes(desk)]).fit()

        ray.get(desk.start_workers.remote([ray.put(train)]), timeout=CALL_SECONDS)

    def run(self, name: str, do: Callable[..., Result], *work: object) -> list[Result]:
        """Has the workers do a job, and prints their lines; returns what `do` returned on each of them, by rank.

        Args:
            name: Of the job, for messages.
            do: Does the job, on every worker; a function of a module.
            work: What `do` gets, before the desk that carries its lines.

        Raises:
            InputError: a worker said so.
            RunError: the workers failed more often than allowed, or did not get their resources in time.
        """
        started = time.monotonic()
        ray.get(self.desk.post.remote([ray.put((do, *work))]), timeout=CALL_SECONDS)
        if not self._have_started:
            self.start()
        deadline = started + self.config.start_timeout
        self.are_usable = False  # until the job is done
        said, pause = False, IDLE_SECONDS
        while not (state := self._look(name, deadline)).done:
            if not (said or state.joined) and time.monotonic() - started > SLOW_SECONDS:
                said = True
                print(f"[{name}] waiting for {self.config.num_workers} worker{'s' * (self.config.num_workers > 1)}", flush=True)
            time.sleep(pause)
            pause = min(1.2 * pause, POLL_SECONDS)  # a short job is not waited for longer than it takes
        self.are_usable = True
        return cast(list[Result], ray.get(self.desk.collect.remote(), timeout=CALL_SECONDS))

    def _look(self, name: str, deadline: float) -> JobState:
        """Prints the lines since the last look; raises what ended the job."""
        try:
            state = cast(JobState, ray.get(self.desk.look.remote(), timeout=CALL_SECONDS))
        except ray.exceptions.GetTimeoutError:  # a busy machine: the next look brings the lines
            return JobState(None, True, False, None, None, [])
        for line in state.lines:
            print(line, flush=True)
        if state.mistake is not None:
            raise InputError(state.mistake)
        if state.failure is not None:
            raise explain(name, RunError(state.failure))
        if not state.done and state.ended is not None:
            raise explain(name, RunError(state.ended))
        if not state.joined and time.monotonic() > deadline:
            raise RunError(
                f"no worker started within cluster.start_timeout={self.config.start_timeout:.0f} seconds: the cluster has no room for "
                f"{needs_of(self.config)}; add hosts, ask for fewer workers, or raise the timeout"
            )
        return state

    def leave(self) -> None:
        """Lets the workers go, and waits until they have gone."""
        ray.get(self.desk.close.remote(), timeout=CALL_SECONDS)
        deadline = time.monotonic() + LEAVE_SECONDS
        while self._have_started and time.monotonic() < deadline:
            if ray.get(self.desk.look.remote(), timeout=CALL_SECONDS).ended is not None:
                break
            time.sleep(POLL_SECONDS)
        ray.kill(self.desk)
        self.clean()

    def clean(self) -> None:
        """Removes what Ray Train wrote, once the workers have left or Ray has ended."""
        remove(join(ray_folder(self.run_url), self._name))


def _loop_of(desk: ActorHandle) -> Callable[[], None]:
    """What every worker does: jobs from the desk, until that is closed."""

    def loop() -> None:
        rank = ray.train.get_context().get_world_rank()
        ray.get(desk.join.remote(rank), timeout=CALL_SECONDS)
        while True:
            stays, work = ray.get(desk.take.remote(rank), timeout=CALL_SECONDS)
            if not stays:
                return
            if work is None:
                time.sleep(IDLE_SECONDS)
                continue
            with noting_mistakes(desk):
                do, *given = ray.get(work[0])
                result = do(*given, desk)
            gc.collect()  # what the job held, before the worker waits beside other processes
            ray.get(desk.finish.remote(rank, result), timeout=CALL_SECONDS)

    return loop
