"""What results.json of an experiment holds: the one document that the report and the plots are made from."""

from typing import TypedDict

from ...core.storage import JsonObject


class Spread(TypedDict):
    """A figure over seeds: mean, standard deviation (None of a single seed), and the values by seed."""

    mean: float
    deviation: float | None
    by_seed: list[float]


class ModelResults(TypedDict):
    """Figures of a model, over its seeds.

    `validation` and `test` are by metric, `modalities` is the main metric on validation by a teacher's modality; `search` is an entry of
    choices.json, None where the model was not searched; `added` says that the model came when test figures of others were known.
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
    seconds_per_epoch: Spread
    ranking_seconds: Spread
    best_epoch: Spread
    epochs: Spread
    search: JsonObject | None
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


def metrics_of(model: ModelResults, split: str) -> dict[str, Spread]:
    """A model's metrics on a split, "validation" or "test"."""
    return model["validation"] if split == "validation" else model["test"]
