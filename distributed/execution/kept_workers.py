"""Ray Train workers that do one job after the other.

One `fit` of Ray Train runs all the time; its loop takes jobs from a desk (desk.py), so that only the first job waits for workers. On a
cluster that ends with the command they are kept between its jobs; on another one they leave after each.
"""

import gc
import time
from collections.abc import Callable
from typing import TypeVar, cast

import ray
from ray.actor import ActorHandle
from ray.train import UserCallback
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from ...core.errors import InputError, RunError
from ...core.storage import join, remove
from ..config import ClusterConfig
from ..progress import SLOW_SECONDS
from .desk import JobDesk, JobState
from .launch import can_ever_fit, explain, make_trainer, needs_of, noting_mistakes, ray_folder, room_now, unique_name
from .lines import CALL_SECONDS, POLL_SECONDS

IDLE_SECONDS = 0.05  # how often a worker without a job asks for one
LEAVE_SECONDS = 60.0
AGAIN_SECONDS = 15.0  # between lines about a wait


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
        here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
        self.desk: ActorHandle = JobDesk.options(scheduling_strategy=here).remote(config.num_workers, config.max_failures)
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
        ray.get(self.desk.post.remote([ray.put((do, *work))]), timeout=CALL_SECONDS)
        if not self._have_started:
            self.start()
        self.are_usable = False  # until the job is done
        say_at, pause = SLOW_SECONDS, IDLE_SECONDS
        while not (state := self._look(name)).done:
            if state.waiting is None or state.waiting < SLOW_SECONDS:
                say_at = SLOW_SECONDS
            elif state.waiting > say_at:
                say_at += AGAIN_SECONDS
                print(
                    f"[{name}] waiting for {needs_of(self.config)}, for {state.waiting:.0f} s of at most {self._longest_wait():.0f}; the "
                    f"cluster has {room_now()}",
                    flush=True,
                )
            time.sleep(pause)
            pause = min(1.2 * pause, POLL_SECONDS)  # a short job is not waited for longer than it takes
        self.are_usable = True
        return cast(list[Result], ray.get(self.desk.collect.remote(), timeout=CALL_SECONDS))

    def _longest_wait(self) -> float:
        """Seconds to wait for workers: longer where the cluster as it is can never have room, and its autoscaler may add hosts."""
        config = self.config
        return config.start_timeout if can_ever_fit(config) else max(config.start_timeout, config.scale_timeout)

    def _look(self, name: str) -> JobState:
        """Prints the lines since the last look; raises what ended the job."""
        try:
            state = cast(JobState, ray.get(self.desk.look.remote(), timeout=CALL_SECONDS))
        except ray.exceptions.GetTimeoutError:  # a busy machine: the next look brings the lines
            return JobState(None, None, False, None, None, [])
        for line in state.lines:
            print(line, flush=True)
        if state.mistake is not None:
            raise InputError(state.mistake)
        if state.failure is not None:
            raise explain(name, RunError(state.failure))
        if not state.done and state.ended is not None:
            raise explain(name, RunError(state.ended))
        if not state.done and state.waiting is not None and state.waiting > self.config.start_timeout:
            longest = self._longest_wait()
            if state.waiting > longest:
                setting = "scale_timeout" if longest > self.config.start_timeout else "start_timeout"
                raise RunError(
                    f"{name}: no worker started within cluster.{setting}={longest:.0f} seconds: the cluster has no room for "
                    f"{needs_of(self.config)}, it has {room_now()}; add hosts, ask for fewer workers, or raise the timeout. The same "
                    "command goes on from the last checkpoint"
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
        self.end()

    def end(self) -> None:
        """Ends the workers at once: with the desk go Ray Train's controller, and what waits for room."""
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
