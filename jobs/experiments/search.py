"""Random search of a model's settings with Ray Tune, on validation.

The points follow from the space and a seed alone, so that a search resumes by the records of its finished trials.
"""

import itertools
import logging
import math
import os
import zlib
from collections.abc import Callable
from typing import Any

import numpy as np
from ray.actor import ActorHandle

from ...core.errors import InputError, RunError
from ...core.storage import JsonObject, remove
from .cells import Cell, failure_of, finished_cell, run_cell, waiting_for
from .config import RangeConfig, SearchConfig
from .records import CellRecord, SearchResult, Trial, read_cell, write_cell

ATTEMPTS = 100  # to draw a point that was not drawn before


def draw_points(name: str, search: SearchConfig, seed: int) -> list[JsonObject]:
    """Draws the search's points: `trials` random ones without repetition, or all of a finite space that has no more.

    Args:
        name: The model's, which makes its draws its own.
        search: Space and number of trials.
        seed: Of the draws.
    """
    lists = [values for values in search.space.values() if isinstance(values, list)]
    if len(lists) == len(search.space) and math.prod(map(len, lists)) <= search.trials:
        return [dict(zip(search.space, point)) for point in itertools.product(*lists)]
    domains = {key: _domain(key, space) for key, space in search.space.items()}
    rng = np.random.default_rng([seed, zlib.crc32(name.encode())])
    points: list[JsonObject] = []
    for _ in range(search.trials * ATTEMPTS):
        point = {key: _plain(domain.sample(random_state=rng)) for key, domain in domains.items()}
        if point not in points:
            points.append(point)
        if len(points) == search.trials:
            break
    return points


def _domain(key: str, space: list[Any] | RangeConfig) -> Any:
    """Builds the space of a setting as Ray Tune has it."""
    from ray import tune

    if isinstance(space, list):
        if not space:
            raise InputError(f"search: {key} has no values")
        return tune.choice(space)
    if not space.low < space.high or (space.log and space.low <= 0):
        raise InputError(f"search: {key}: expected low < high, and more than 0 with log; found low={space.low}, high={space.high}")
    if isinstance(space.low, int) and isinstance(space.high, int):
        return (tune.lograndint if space.log else tune.randint)(space.low, space.high + 1)
    return (tune.loguniform if space.log else tune.uniform)(space.low, space.high)


def _plain(value: object) -> object:
    """Turns a drawn value into one that JSON has, floats to four digits: what is reported is what was run."""
    value = value.item() if isinstance(value, np.generic) else value
    return float(f"{value:.4g}") if isinstance(value, float) else value


def run_trials(cells: list[Cell], url: str, done: Callable[[Cell, CellRecord | None], None], lines: ActorHandle) -> None:
    """Trains the cells of a search as trials of Ray Tune; those that are done already are not trained again.

    A trial whose loss is not finite, or whose teacher's scores do not fit, is part of the search: it is noted as failed and not chosen.

    Args:
        cells: All of them.
        url: Folder for Ray Tune's own files, which are removed at the end.
        done: Called with each cell and its record as it ends.
        lines: The `ProgressLines` actor.

    Raises:
        RunError: processes of trials failed for another reason; the message has the first of them.
    """
    from ray import tune

    from ...distributed.execution.launch import ray_storage

    left = [cell for cell in cells if finished_cell(cell) is None]
    if not left:
        return
    os.environ.setdefault("RAY_AIR_NEW_OUTPUT", "0")  # the only one that verbose=0 silences
    os.environ.setdefault("TUNE_DISABLE_AUTO_CALLBACK_LOGGERS", "1")
    os.environ.setdefault("TUNE_DISABLE_SIGINT_HANDLER", "1")  # an interruption ends the experiment, not the search alone

    logging.getLogger("ray.tune").setLevel(logging.CRITICAL)  # failures are told below, by name

    class Lines(tune.Callback):
        def on_trial_complete(self, iteration: int, trials: list, trial: Any, **info: object) -> None:
            cell = left[trial.config["cell"]]
            done(cell, read_cell(cell.url))

    options = cells[0].settings.cluster
    resources: dict[str, float] = {"cpu": cells[0].threads, "gpu": cells[0].gpus}
    tuner = tune.Tuner(
        tune.with_resources(tune.with_parameters(run_trial, cells=left, lines=lines), resources),
        param_space={"cell": tune.grid_search(list(range(len(left))))},
        tune_config=tune.TuneConfig(reuse_actors=True),
        run_config=tune.RunConfig(
            name="trials",
            verbose=0,
            callbacks=[Lines()],
            failure_config=tune.FailureConfig(max_failures=options.max_failures),
            **ray_storage(url),
        ),
    )
    remove(url)  # what an interrupted one left
    with waiting_for(left[0], lines):
        results = tuner.fit()
    remove(url)
    failures = []
    for at, cell in enumerate(left):
        if finished_cell(cell) is None:
            record = read_cell(cell.url)
            cause = results[at].error or (record and record.error)
            failures.append(f"{cell.name}: {failure_of(cause) if isinstance(cause, Exception) else cause}")
    if failures:
        raise RunError(f"{len(failures)} trials failed, and the same command runs them again:\n  " + "\n  ".join(failures))


def run_trial(config: JsonObject, cells: list[Cell], lines: ActorHandle) -> None:
    """Trains the cell that is a trial, in the trial's process; `config["cell"]` is its place among the cells."""
    from ray import tune

    cell = cells[config["cell"]]
    try:
        run_cell(cell, lines)
    except (FloatingPointError, InputError) as error:
        write_cell(cell.url, CellRecord(cell.digest, cell.made_with, True, failed=str(error)))
    except Exception as error:  # Ray Tune would try it again, which is for processes that die
        write_cell(cell.url, CellRecord(cell.digest, cell.made_with, False, error=failure_of(error)))
    tune.report({"done": 1})


def choose(name: str, points: list[JsonObject], cells: list[list[Cell]], metric: str) -> SearchResult:
    """Chooses the best point by the mean validation metric over its seeds; the first of equals.

    Args:
        name: The model's.
        points: The search's points.
        cells: The finished cells of every point.
        metric: "recall@20" or another.

    Raises:
        RunError: no point was trained without a failure.
    """
    values: list[float | None] = []
    for of_point in cells:
        records = [finished_cell(cell) for cell in of_point]
        by_seed = [record.result.validation[metric] for record in records if record is not None and record.result is not None]
        values.append(float(np.mean(by_seed)) if len(by_seed) == len(of_point) else None)
    valid = [(index, value) for index, value in enumerate(values) if value is not None]
    if not valid:
        first = finished_cell(cells[0][0])
        raise RunError(f"search of {name}: every trial failed; the first: {first and first.failed}")
    best, best_value = max(valid, key=lambda entry: entry[1])
    trials = [Trial(point, value) for point, value in zip(points, values)]
    return SearchResult(points[best], best, best_value, metric, trials)
