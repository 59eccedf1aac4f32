"""How fast models train: steps and seconds to a share of a validation metric."""

from collections.abc import Mapping, Sequence

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
    stage, metric = models[name].stage, models.recipe.metric
    of, thresholds, by_seed, fitted = None, [], [], True
    for at, (seed, own) in enumerate(zip(models.recipe.config.seeds, results[name])):
        settings = models.settings(name, seed, choices)
        of = models.teacher_of(name, settings)
        thresholds.append(SHARE * (own if of is None else results[of][at]).validation[metric])
        train, history = (settings.teacher if stage == "teacher" else settings.student).train, read_history(settings.dir, stage)
        fitted &= not history
        steps = -(-num_train // train.batch_size)
        by_seed.append(first_reached(history, metric, thresholds[at], steps, own.best_epoch, own.validation[metric]))
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
