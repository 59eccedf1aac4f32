"""Trained models as evaluation, export and experiments read them: the vectors that serve, and what they cost."""

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from ...core.agreement import Scores, agreement
from ...core.artifact import read_manifest
from ...core.config import EvaluationConfig
from ...core.graph import Csr
from ...core.histories import Histories
from ...core.kinds import TEACHERS
from ...core.sides import ITEMS, USERS
from ...core.storage import JsonObject, join
from ...core.teacher.base import Teacher
from ...distributed.artifacts.stored_scores import open_scores
from ...distributed.artifacts.teacher import modal_rows, read_revision, read_weights, teacher_config_of
from ...distributed.loop.stage import stage_url
from ...distributed.messages import StoredScores
from ...graph_store.dataset import Dataset

FLOAT_BYTES = INDEX_BYTES = 4


@dataclass(frozen=True)
class ModelFacts:
    """What a trained model costs, and how it was chosen; these fields stand in results.json and in the cells' records.

    Attributes:
        num_parameters: Trained parameters.
        serving_bytes: All that is needed to produce the scores that serve.
        best_epoch: The epoch that was chosen, from 0.
        selected_by: The validation metric that chose it, or that there was none.
    """

    num_parameters: int
    serving_bytes: int
    best_epoch: int
    selected_by: str


@dataclass(frozen=True)
class TrainedModel:
    """A trained teacher or student.

    Attributes:
        stored: Names its final scores for other processes.
        users: Final vectors, float32 [num_users, d], memory-mapped.
        items: float32 [num_items, d], memory-mapped.
        facts: Costs and choice.
        modal: Of a teacher, reads the final vectors of users and items by modality, float32 in the same shapes.
        trials: Settings that a teacher's own fit tried on validation, where its manifest says so.
        histories: Of a teacher, scores from all users' train interactions, which are added to the final vectors' dot products.
        untouched: Of a teacher, the vectors that its features alone give to items without train interactions, float32 [n, d] for their
            indices, int64 [n]; None where features do not reach them.
    """

    stored: StoredScores
    users: Tensor
    items: Tensor
    facts: ModelFacts
    modal: Callable[[], dict[str, tuple[Tensor, Tensor]]] = dict
    trials: int | None = None
    histories: Histories = ()
    untouched: Callable[[Tensor], Tensor | None] = lambda rows: None


def trained_teacher(run_url: str, dataset: Dataset, cache_dir: str | None) -> TrainedModel:
    """Reads the teacher of a run, at the prompt that it was trained with.

    Raises:
        InputError: it is missing or damaged.
    """
    url, stored = join(run_url, "teacher"), StoredScores(run_url, "teacher")

    def train() -> Csr:
        return dataset.csr("train")

    manifest, scores = read_manifest(url, "teacher"), open_scores(stored, train, cache_dir)
    features = sum(dataset.num_items * dim * FLOAT_BYTES for _, dim in manifest["modalities"])  # of those that it reads
    # Weights, prompt and raw features (as float32): what must be held to produce the scores that serve.
    held = manifest["num_parameters"] * FLOAT_BYTES + features
    if scores.histories:  # beside the values, which are parameters: where they stand, the users' weights, and once the histories
        similar = [part.similarities for part in scores.histories]
        held += sum(each.num_bytes - each.values.numel() * FLOAT_BYTES for each in similar)
        held += len(similar) * scores.users.shape[0] * FLOAT_BYTES + scores.histories[0].histories.columns.numel() * INDEX_BYTES

    def modal() -> dict[str, tuple[Tensor, Tensor]]:
        return {m: (sides[USERS].whole(), sides[ITEMS].whole()) for m, sides in modal_rows(url, 0, cache_dir).items()}

    def untouched(rows: Tensor) -> Tensor | None:
        config, weights = teacher_config_of(manifest), read_weights(url, cache_dir)[0]
        kind: type[Teacher] = TEACHERS.get(config.kind)
        return kind.untouched_items(config, read_revision(url, 0, cache_dir, train).vectors, weights, rows)

    facts = _facts(manifest, held)
    return TrainedModel(stored, scores.users, scores.items, facts, modal, _trials(manifest), tuple(scores.histories), untouched)


def trained_student(run_url: str, cache_dir: str | None) -> TrainedModel:
    """Reads the student of a run.

    Raises:
        InputError: it is missing or damaged.
    """
    stored, model = StoredScores(run_url, "student"), join(stage_url(run_url, "student"), "model")
    scores, facts = open_scores(stored, _no_histories, cache_dir), read_manifest(model, "student-model")
    return TrainedModel(stored, scores.users, scores.items, _facts(facts, (scores.users.numel() + scores.items.numel()) * FLOAT_BYTES))


def _no_histories() -> Csr:
    raise AssertionError("a student's scores are dot products")


def agreement_of(teacher: TrainedModel, student: TrainedModel, train: Csr, config: EvaluationConfig) -> dict[str, float]:
    """Computes how much of what the teacher ranks best the student ranks best, too: `core.agreement` at the cutoffs of evaluation."""
    of_teacher, of_student = (Scores(model.users, model.items, model.histories) for model in (teacher, student))
    return agreement(of_teacher, of_student, train, config.cutoffs, config.memory_mib)


def _trials(manifest: JsonObject) -> int | None:
    """Reads how many settings a teacher's own fit tried on validation: `trials` of the manifest, or of its facts about a linear fit."""
    trials: int | None = manifest.get("trials", manifest.get("linear", {}).get("trials"))
    return trials


def _facts(manifest: JsonObject, serving_bytes: int) -> ModelFacts:
    selected_by = manifest["selected_by"] or "no validation split: the last epoch"
    return ModelFacts(manifest["num_parameters"], serving_bytes, manifest["best_epoch"], selected_by)
