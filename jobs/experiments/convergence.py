"""How fast models train: steps and seconds to a share of a validation metric, and to what the best linear model has."""

from collections.abc import Mapping, Sequence

from ...core.kinds import TEACHERS
from ...distributed.loop.selection import START
from ..runs.report import read_history
from .document import Convergence, Reached
from .models import Choices, Models
from .records import CellResult

SHARE = 0.95


def converged(models: Models, name: str, choices: Choices, results: Mapping[str, Sequence[CellResult]], num_train: int) -> Convergence:
    """Finds when a model's trainings reached `SHARE` of the validation metric of their teacher, or of their own where they have none.

    Args:
        models: All models.
        name: The model.
        choices: Settings that searches chose, by model.
        results: What training gave, by model and in the order of the seeds.
        num_train: Train interactions, all of which an epoch counts as examples.
    """
    of = models.teacher_of(name, models.settings(name, models.recipe.config.seeds[0], choices))
    metric = models.recipe.metric
    thresholds = [SHARE * result.validation[metric] for result in results[name if of is None else of]]
    return _reached(models, name, choices, results[name], of, thresholds, num_train)


def as_linear(
    models: Models, name: str, choices: Choices, results: Mapping[str, Sequence[CellResult]], num_train: int
) -> Convergence | None:
    """Finds when a model's trainings reached the validation metric that the best linear model has at the same seed.

    Args:
        models, name, choices, results, num_train: As for `converged`.

    Returns:
        It, with `of` the linear model; None where no model is fitted in closed form, or the model is itself.
    """
    metric = models.recipe.metric
    linear = [each for each in results if _is_linear(models, each, choices)]
    if not linear or name in linear:
        return None
    best = max(linear, key=lambda each: sum(result.validation[metric] for result in results[each]))
    return _reached(models, name, choices, results[name], best, [result.validation[metric] for result in results[best]], num_train)


def _is_linear(models: Models, name: str, choices: Choices) -> bool:
    if models[name].stage != "teacher":
        return False
    return TEACHERS.get(models.settings(name, models.recipe.config.seeds[0], choices).teacher.kind).is_fitted


def _reached(
    models: Models, name: str, choices: Choices, results: Sequence[CellResult], of: str | None, thresholds: list[float], num_train: int
) -> Convergence:
    """Finds when a model's trainings, in the order of the seeds, reached a threshold each."""
    stage, metric = models[name].stage, models.recipe.metric
    by_seed, fitted = [], True
    for seed, own, threshold in zip(models.recipe.config.seeds, results, thresholds):
        settings = models.settings(name, seed, choices)
        train, history = (settings.teacher if stage == "teacher" else settings.student).train, read_history(settings.dir, stage)
        fitted &= not history
        steps = -(-num_train // train.batch_size)
        reached = first_reached(history, metric, threshold, steps, own.best_epoch, own.validation[metric])
        by_seed.append(reached if history else None)  # without epochs there is no time to count
    return Convergence(of=of, thresholds=thresholds, by_seed=by_seed, fitted=fitted)


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
