"""What results.json of an experiment holds: the one document that the report and the plots are made from."""

from collections.abc import Sequence
from typing import TypedDict

from ...core.statistics import mean_and_deviation
from ...core.storage import JsonObject


class Spread(TypedDict):
    """A figure over seeds: mean, standard deviation (None of a single seed), and the values by seed."""

    mean: float
    deviation: float | None
    by_seed: list[float]


class Reached(TypedDict):
    """When one training reached a validation metric: steps from its start, and seconds of its epochs until then, validation included."""

    steps: int
    seconds: float


class Convergence(TypedDict):
    """When the trainings of a model reached a share of a validation metric.

    `of` is the model whose metric at the same seed it is, None for the model's own at its chosen epoch; `by_seed` is None where it was
    never reached; `fitted` says that there were no epochs to count, as where a model is fitted in closed form or adds up others.
    """

    of: str | None
    thresholds: list[float]
    by_seed: list[Reached | None]
    fitted: bool


class ModelResults(TypedDict):
    """Figures of a model, over its seeds.

    `validation` and `test` are by metric, `modalities` is the main metric on validation by a teacher's modality; `search` is an entry of
    choices.json, None where the model was not searched; `fit_trials` are the settings that a teacher's own fit tried on validation, None
    where it does not try any; `convergence` is that to .95 of the teacher's metric or its own, `as_linear` to the whole metric of the best
    model that is fitted in closed form, None where there is none or the model is one; `added` says that the model came when test figures
    of others were known.
    """

    role: str
    stage: str
    teacher: str | None
    of: str | None
    validation: dict[str, Spread]
    test: dict[str, Spread]
    modalities: dict[str, Spread]
    num_parameters: Spread
    serving_bytes: Spread
    seconds: Spread
    seconds_per_epoch: Spread
    ranking_seconds: Spread
    best_epoch: Spread
    epochs: Spread
    convergence: Convergence
    as_linear: Convergence | None
    search: JsonObject | None
    fit_trials: Spread | None
    agreement: dict[str, Spread] | None
    added: bool


class Comparison(TypedDict):
    """A metric of `first` - `second`, paired over users: difference with its 95 % interval, and p-values of three tests."""

    first: str
    second: str
    difference: float
    low: float
    high: float
    p_t: float
    p_sign_flip: float
    p_holm: float


class TeacherLead(TypedDict):
    """How far the teacher is above the undistilled student, with its 95 % interval."""

    value: float
    low: float
    high: float


class Transferability(TypedDict):
    """(student - undistilled) / (teacher - undistilled) of these models; None where it is not defined."""

    student: str
    teacher: str
    undistilled: str
    value: float | None
    low: float | None
    high: float | None
    by_seed: list[float | None]
    over_seeds: Spread | None
    teacher_lead: TeacherLead


class Popularity(TypedDict):
    """Shares of test items found in lists of k, by groups of items of like popularity: test pairs by group, shares by model and group."""

    k: int
    num_pairs: dict[str, int]
    models: dict[str, dict[str, Spread]]


class Results(TypedDict):
    """The whole document; `sweeps` lists the models of every sweep, in the order of their values."""

    experiment: str
    metric: str
    seeds: list[int]
    threads: int
    list_length: int
    dataset: JsonObject
    models: dict[str, ModelResults]
    comparisons: list[Comparison]
    transferability: Transferability | None
    ablations: list[Comparison]
    sweeps: dict[str, list[str]]
    popularity: Popularity


class Budget(TypedDict):
    """What the search of a model took: trials, seeds of each, and the training seconds of all trials that ended with a result."""

    trials: int
    seeds: int
    seconds: float


def metrics_of(model: ModelResults, split: str) -> dict[str, Spread]:
    """A model's metrics on a split, "validation" or "test"."""
    return model["validation"] if split == "validation" else model["test"]


def over_seeds(values: Sequence[float]) -> Spread:
    """Computes mean and deviation of a figure by seed."""
    by_seed = [*values]
    mean, deviation = mean_and_deviation(by_seed)
    return {"mean": mean, "deviation": deviation, "by_seed": by_seed}
