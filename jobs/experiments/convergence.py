"""How fast models train: steps and seconds to a share of a validation metric, and to what the best linear model has."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from ...core.kinds import TEACHERS
from ...distributed.loop.selection import START
from ..runs.report import read_history
from .document import Convergence, Reached
from .models import Choices, Models
from .records import CellResult

SHARE = 0.95


def converged(
    models: Models, choices: Choices, results: Mapping[str, Sequence[CellResult]], num_train: int
) -> dict[str, tuple[Convergence, Convergence | None]]:
    """Finds when the trainings of all models reached what they are measured by, on validation.

    Args:
        models: All models.
        choices: Settings that searches chose, by model.
        results: What training gave, by model and in the order of the seeds.
        num_train: Train interactions, all of which an epoch counts as examples.

    Returns:
        By model, when it reached `SHARE` of its teacher's metric, or of its own where it has no teacher; and when it reached the metric
        that the best linear model has at the same seed, None where no model is fitted in closed form, or the model is itself.
    """
    seeds, metric = models.recipe.config.seeds, models.recipe.metric
    found: dict[str, tuple[Convergence, Convergence | None]] = {}
    settings = {name: [models.settings(name, seed, choices) for seed in seeds] for name in results}
    values = {name: [result.validation[metric] for result in of_model] for name, of_model in results.items()}
    linear = [name for name in results if models[name].stage == "teacher" and TEACHERS.get(settings[name][0].teacher.kind).is_fitted]
    best = max(linear, key=lambda name: sum(values[name]), default=None)
    for name, of_model in results.items():
        stage, teacher = models[name].stage, models.teacher_of(name, settings[name][0])
        trains = [(of_seed.teacher if stage == "teacher" else of_seed.student).train for of_seed in settings[name]]
        trainings = [
            _Training(read_history(of_seed.dir, stage), -(-num_train // train.batch_size), result)
            for of_seed, train, result in zip(settings[name], trains, of_model)
        ]
        share = _reached(trainings, metric, teacher, [SHARE * value for value in values[name if teacher is None else teacher]])
        found[name] = share, None if best is None or name in linear else _reached(trainings, metric, best, values[best])
    return found


class _Training(NamedTuple):
    """A finished training: its rows of metrics.jsonl, none where there were no epochs; steps of an epoch; and what it gave."""

    history: Sequence[dict[str, float]]
    steps_per_epoch: int
    result: CellResult


def _reached(trainings: Sequence[_Training], metric: str, of: str | None, thresholds: list[float]) -> Convergence:
    """Finds when trainings, in the order of the seeds, reached a threshold each; without epochs there is no time to count."""
    by_seed = [
        first_reached(history, metric, threshold, steps, result.best_epoch, result.validation[metric]) if history else None
        for (history, steps, result), threshold in zip(trainings, thresholds)
    ]
    return Convergence(of=of, thresholds=thresholds, by_seed=by_seed, fitted=not any(training.history for training in trainings))


def first_reached(
    history: Sequence[dict[str, float]], metric: str, threshold: float, steps_per_epoch: int, best_epoch: int, best_value: float
) -> Reached | None:
    """Finds the first validation of a training that reached a threshold; None where none did.

    Args:
        history: The rows of metrics.jsonl; some have no validation (train.evaluate_every).
        metric: Name of the metric.
        threshold: What it had to reach.
        steps_per_epoch: Steps of one epoch.
        best_epoch, best_value: The chosen epoch, `START` for the weights before the first step, and its metric: validation at the start
            is not among the rows.
    """
    if best_epoch == START and best_value >= threshold:
        return {"steps": 0, "seconds": 0.0}
    for at, row in enumerate(history):
        if row.get(f"validation/{metric}", -1.0) >= threshold:
            return {"steps": (at + 1) * steps_per_epoch, "seconds": sum(past["seconds"] for past in history[: at + 1])}
    return None
