"""Memory of labelers and evaluators, and the sizes of labels."""

from ...core.histories import BLOCK_ENTRIES, BLOCK_SCORES, ENTRY_BYTES
from ...core.objectives import candidate_policy
from ...core.scoring import CHUNK_BYTES
from ...distributed.artifacts.teacher import ROWS_A_SHARD
from ...distributed.labels.rankings import USERS_A_RANGE
from ..settings import Settings
from . import kinds
from .sizes import SCORE_BYTES, Need, Sizes
from .units import FLOAT, INDEX

DRAW_ARRAYS = 5.5  # int64 arrays that live at once while the candidates of a block are drawn, measured
HISTORY_BYTES = BLOCK_SCORES * 3 * FLOAT + BLOCK_ENTRIES * ENTRY_BYTES


def candidates_of(settings: Settings, sizes: Sizes) -> int:
    """Counts the items of a student's list, the positive included."""
    return 1 + (candidate_policy(settings.distill).num_candidates + settings.distill.num_student if sizes.taught else 1)


def vectors_bytes(settings: Settings, sizes: Sizes) -> int:
    """Bytes of all vectors at one revision of the teacher: final, by modality, and the prompt's."""
    config = settings.teacher
    count = len(sizes.dims)
    return (
        sizes.nodes
        * (kinds.final_dim(config, sizes) + count * kinds.modal_dim(config, sizes) + kinds.has_prompt(config) * config.dim)
        * FLOAT
    )


def histories(settings: Settings, sizes: Sizes) -> dict[str, int]:
    """Bytes of what a teacher scores histories with, by purpose; nothing for most teachers."""
    similarities = kinds.similarity_bytes(settings.teacher, sizes)
    return {"item similarities": similarities, "sums over histories": HISTORY_BYTES} if similarities else {}


def block_rows(settings: Settings) -> int:
    """Counts the examples of a label block."""
    return max(settings.labels.block_rows, settings.student.train.batch_size)


def label_row(settings: Settings, sizes: Sizes) -> int:
    """Bytes of a labelled example on disk and on the wire."""
    return 4 + (1 + candidate_policy(settings.distill).num_candidates) * (4 + 2 + 2 * len(sizes.dims)) + 12


def label_block(settings: Settings, sizes: Sizes) -> int:
    """Bytes of a block of labels."""
    return min(block_rows(settings), sizes.edges) * label_row(settings, sizes)


def labeler(settings: Settings, sizes: Sizes) -> Need:
    """Memory of a label process: all train interactions, and a block in the making."""
    count, width = len(sizes.dims), 1 + candidate_policy(settings.distill).num_candidates
    rows, depth = min(block_rows(settings), sizes.edges), candidate_policy(settings.distill).depth
    vectors = vectors_bytes(settings, sizes)
    joined = max(sizes.users, sizes.items) > ROWS_A_SHARD
    held = {
        "train interactions": 3 * sizes.edges * INDEX + sizes.nodes * INDEX,
        "teacher vectors": vectors if joined else 0,
        **histories(settings, sizes),
    }
    drawn = {"a block's draws": rows * width * DRAW_ARRAYS * INDEX, "a block's rankings": 2 * min(rows, sizes.users) * depth * INDEX}
    scored = rows * width * ((2 + 3 * count) * FLOAT + INDEX) + CHUNK_BYTES  # candidate vectors are gathered a chunk at a time
    packed = rows * width * ((1 + count) * FLOAT + INDEX) + 3 * label_block(settings, sizes)
    moments: dict[str, dict[str, float]] = {
        "loading": {"train interactions": 8 * sizes.edges * INDEX},
        "drawing candidates": {**held, **drawn},
        "scoring": {**held, "a block's candidates": scored},
        "packing": {**held, "a block's candidates": packed},
    }
    mapped = (0 if joined else vectors) + rankings_bytes(settings, sizes)
    return Need.of("labeler", "labeler", moments, "labels.block_rows or distill.num_uniform", mapped)


def ranker(settings: Settings, sizes: Sizes) -> Need | None:
    """Memory of a process that ranks users before labels are made: train interactions, and a range of users; None where none rank."""
    depth, ranked = candidate_policy(settings.distill).depth, min(USERS_A_RANGE, sizes.users)
    if not rankings_bytes(settings, sizes):
        return None
    dim, own = kinds.final_dim(settings.teacher, sizes), sizes.edges * ranked // max(1, sizes.users)
    parts = {
        "train interactions": sizes.edges * INDEX + sizes.nodes * INDEX,
        **histories(settings, sizes),
        "item vectors": sizes.items * dim * FLOAT if sizes.items > ROWS_A_SHARD else 0,
        "a range of users": ranked * (dim * FLOAT + 2 * depth * INDEX) + 5 * own * INDEX,
        "score blocks": SCORE_BYTES,
    }
    mapped = vectors_bytes(settings, sizes)
    moments = {"loading": {"train interactions": 8 * sizes.edges * INDEX}, "ranking": parts}
    return Need.of("ranker", "labeler", moments, "distill.top_depth", mapped)


def rankings_bytes(settings: Settings, sizes: Sizes) -> int:
    """Bytes of the teacher's rankings of all users on disk; 0 where no candidates are drawn from them, and beside a resident teacher."""
    if not sizes.taught or settings.distill.regime == "inline":
        return 0
    return sizes.users * min(candidate_policy(settings.distill).depth, sizes.items) * 4


def evaluator(sizes: Sizes, dim: int, model: str, of_histories: dict[str, int] | None = None) -> Need:
    """Memory of a worker or a task that evaluates: all vectors, in Ray's object store and copied, and the interactions that it masks.

    Args:
        sizes: Of the catalog.
        dim: Columns of the vectors.
        model: "teacher" or "student".
        of_histories: What a teacher scores histories with, by purpose.
    """
    vectors = sizes.nodes * dim * FLOAT
    parts = {"vectors": vectors, "object store": vectors, "masks": 8 * sizes.edges * INDEX, "score blocks": SCORE_BYTES}
    parts |= {name: 2 * size if name == "item similarities" else size for name, size in (of_histories or {}).items()}
    return Need.of(f"evaluator ({model})", "evaluator", {"ranking": parts}, f"{model}.dim")
