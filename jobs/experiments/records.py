"""What cells, test passes and searches leave on disk: cell.json, test.json and choices.json."""

from dataclasses import asdict, dataclass, fields

from ...core.storage import JsonObject, exists, join, read_json, write_json


@dataclass(frozen=True)
class CellResult:
    """What training a cell gave; its fields stand beside the others of cell.json.

    Attributes:
        validation: Validation metrics of the chosen epoch.
        modalities: The same of every modality's path of a teacher alone.
        num_parameters, serving_bytes, best_epoch, selected_by: See `ModelFacts`.
        epochs: Number of epochs that were trained.
        seconds: Wall-clock time of the training since it last started.
        seconds_per_epoch: Mean over the epochs.
        ranking_seconds: Median time to rank all users once.
        trials: Settings that the model's own fit tried on validation; None where it does not try any, and then not in cell.json.
        agreement: Of a student with a teacher, `core.agreement` by cutoff; None for others, and then not in cell.json.
    """

    validation: dict[str, float]
    modalities: dict[str, dict[str, float]]
    num_parameters: int
    serving_bytes: int
    best_epoch: int
    selected_by: str
    epochs: int
    seconds: float
    seconds_per_epoch: float
    ranking_seconds: float
    trials: int | None = None
    agreement: dict[str, float] | None = None


@dataclass(frozen=True)
class CellRecord:
    """What cell.json says of a cell.

    Attributes:
        digest: Checksum of `made_with`.
        made_with: Everything that decides the result, as JSON-able values.
        done: Whether it has ended: with a result, or as a failed trial of a search.
        result: None where there is none.
        failed: Why a trial of a search failed that is not to be tried again.
        error: Why a trial failed that is to be tried again.
    """

    digest: str
    made_with: JsonObject
    done: bool
    result: CellResult | None = None
    failed: str | None = None
    error: str | None = None


def read_cell(url: str) -> CellRecord | None:
    """Reads the record in a cell's folder; None where the cell never started."""
    path = join(url, "cell.json")
    if not exists(path):
        return None
    values = read_json(path)
    of_result = {field.name: values[field.name] for field in fields(CellResult) if field.name in values}
    result = CellResult(**of_result) if of_result else None
    return CellRecord(values["digest"], values["made_with"], values["done"], result, values.get("failed"), values.get("error"))


def write_cell(url: str, record: CellRecord) -> None:
    """Writes the record of a cell into its folder."""
    values = {"digest": record.digest, "made_with": record.made_with, "done": record.done}
    reasons = {"failed": record.failed, "error": record.error}
    values |= {name: reason for name, reason in reasons.items() if reason is not None}
    result = {} if record.result is None else asdict(record.result)
    for name in ("trials", "agreement"):
        if result.get(name) is None:
            result.pop(name, None)
    write_json(join(url, "cell.json"), values | result)


@dataclass(frozen=True)
class TestRecord:
    """What test.json says of a cell: the checksum that it was made with, the depth of the ranking, and the metrics."""

    digest: str
    depth: int
    metrics: dict[str, float]


def read_test(url: str) -> TestRecord | None:
    """Reads the test record in a cell's folder; None where the cell is not tested."""
    path = join(url, "test.json")
    return TestRecord(**read_json(path)) if exists(path) else None


def write_test(url: str, record: TestRecord) -> None:
    """Writes the test record of a cell into its folder."""
    write_json(join(url, "test.json"), asdict(record))


@dataclass(frozen=True)
class Trial:
    """A point of a search: its dotted settings, and the mean validation metric over the seeds; None where it failed."""

    settings: JsonObject
    value: float | None


@dataclass(frozen=True)
class SearchResult:
    """What a search found; an entry of choices.json.

    Attributes:
        settings: Dotted settings of the best trial.
        trial: Its place among the trials.
        value: Its mean validation metric.
        metric: Name of the metric.
        trials: All of them.
    """

    settings: JsonObject
    trial: int
    value: float
    metric: str
    trials: list[Trial]
