"""Memory of labelers and evaluators, and the sizes of labels."""

from ...core.histories import BLOCK_ENTRIES, BLOCK_SCORES, ENTRY_BYTES
from ...core.item_shards import USERS_A_PASS, rows_a_shard
from ...core.objectives import candidate_policy
from ...core.ranking import USERS_AT_A_TIME as USERS_AT_A_TIME_RANKED
from ...core.scoring import CHUNK_BYTES
from ...distributed.labels.blocks import item_dtype
from ...distributed.labels.encoding import index_dtype
from ...distributed.labels.rankings import USERS_AT_A_TIME as USERS_RANKED
from ...distributed.labels.user_labels import USERS_AT_A_TIME
from ...distributed.messages import EXAMPLES_A_RUN
from ..settings import Settings
from . import kinds
from .sizes import SCORE_BYTES, VISITED_ARRAYS, Need, Sizes
from .units import FLOAT, GIB, HALF, INDEX

DRAW_ARRAYS = 5.5  # int64 arrays that live at once while the candidates of a block are drawn, measured
MERGED_BYTES = 76  # of an item in a user's list while a shard's lists are merged with those so far: counted from the code, not measured
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


def score_bytes(settings: Settings, sizes: Sizes, count: float) -> float:
    """Bytes of a row of `count` scores on disk, the final ones and those by modality, with the row's ranges where these are kept."""
    ranges, each = (2 * HALF, 1) if settings.labels.scores == "uint8" else (0, HALF)
    return (1 + len(sizes.dims)) * (count * each + ranges)


def label_row(settings: Settings, sizes: Sizes) -> float:
    """Bytes of an example in a block of labels, on disk without compression and on the wire."""
    policy, item = candidate_policy(settings.distill), item_dtype(sizes.items)(0).itemsize
    places = policy.num_ranked * index_dtype(policy.depth)(0).itemsize
    items = (1 + policy.num_candidates - policy.num_ranked) * item
    return 4 + items + places + score_bytes(settings, sizes, policy.num_candidates)


def label_block(settings: Settings, sizes: Sizes) -> float:
    """Bytes of a block of labels by example; by user, of nothing, since a student maps these."""
    return 0 if settings.labels.by == "users" else min(block_rows(settings), sizes.edges) * label_row(settings, sizes)


def labels_in_hand(settings: Settings, sizes: Sizes) -> float:
    """Bytes of what a student's worker holds of labels: two blocks, and the labels of the steps that it reads together."""
    together = min(max(EXAMPLES_A_RUN, settings.student.train.batch_size // settings.cluster.num_workers), sizes.edges)
    return 2 * label_block(settings, sizes) + together * candidates_of(settings, sizes) * (INDEX + (1 + len(sizes.dims)) * FLOAT)


def user_label_bytes(settings: Settings, sizes: Sizes) -> float:
    """Bytes on disk of labels by user: pools, their scores and the rankings', and the scores of all train items."""
    pool, depth = settings.labels.pool, min(candidate_policy(settings.distill).depth, sizes.items)
    item, scorers = item_dtype(sizes.items)(0).itemsize, 1 + len(sizes.dims)
    of_users = sizes.users * (pool * item + score_bytes(settings, sizes, pool + depth) + INDEX)  # where train items start
    return of_users + sizes.edges * scorers * HALF


def train_rows(sizes: Sizes, users: float) -> float:
    """Bytes of int64 arrays over the train items of so many users, as expected for users who have twice the mean number of them.

    Users of a block that visits interactions have more of them than others. No users have more than all.
    """
    return min(sizes.edges, 2 * users * sizes.edges / max(1, sizes.users)) * INDEX


def labeler(settings: Settings, sizes: Sizes) -> Need:
    """Memory of a label process: a block, or some users, in the making; vectors, rankings and train items are mapped."""
    count, policy, config = len(sizes.dims), candidate_policy(settings.distill), settings.teacher
    width, depth = 1 + policy.num_candidates, policy.depth
    rows, stored = min(block_rows(settings), sizes.edges), settings.labels.by == "users"
    if stored:
        rows, width = min(USERS_AT_A_TIME, sizes.users), depth + settings.labels.pool
    users = min(rows, sizes.users)
    held = {
        "order of the users": 0 if stored else VISITED_ARRAYS[settings.student.examples] * sizes.users * INDEX,
        "users' train items": 6 * train_rows(sizes, users),
        "users' vectors": users * (kinds.final_dim(config, sizes) + count * config.dim) * FLOAT,
        **histories(settings, sizes),
    }
    drawn = {"a block's draws": rows * width * DRAW_ARRAYS * INDEX, "a block's rankings": 2 * users * depth * INDEX}
    scored = rows * width * ((2 + 3 * count) * FLOAT + INDEX) + CHUNK_BYTES  # candidate vectors are gathered a chunk at a time
    packed = rows * width * ((2 + count) * FLOAT + INDEX) + 3 * label_block(settings, sizes)
    moments: dict[str, dict[str, float]] = {
        "counting train items": {"users' numbers": 2 * sizes.users * INDEX},
        "drawing candidates": {**held, **drawn},
        "scoring": {**held, "a block's candidates": scored},
        "packing": {**held, "a block's candidates": packed},
    }
    mapped = vectors_bytes(settings, sizes) + rankings_bytes(settings, sizes) + rows_bytes(sizes)
    return Need.of("labeler", "labeler", moments, "labels.block_rows or distill.num_uniform", mapped)


def rows_bytes(sizes: Sizes) -> int:
    """Bytes of the file that has the train items of all users."""
    return sizes.edges * 4 + sizes.users * INDEX


def ranker(settings: Settings, sizes: Sizes) -> Need | None:
    """Memory of a process that ranks users before labels are made: a range of users; None where none rank."""
    config, count, depth = settings.teacher, len(sizes.dims), candidate_policy(settings.distill).depth
    if not rankings_bytes(settings, sizes):
        return None
    memory = settings.cluster.host_memory
    shard = rows_a_shard(sizes.items, kinds.final_dim(config, sizes) * FLOAT, int(memory * GIB) if memory is not None else None)
    ranked = min(USERS_RANKED if shard is None else USERS_A_PASS, sizes.users)
    dim = kinds.final_dim(config, sizes) + count * kinds.modal_dim(config, sizes)
    parts: dict[str, float] = {
        "users' train items": 5 * train_rows(sizes, ranked),
        **histories(settings, sizes),
        "users at a time": ranked * (dim * FLOAT + depth * (2 * INDEX + (1 + count) * FLOAT)) + CHUNK_BYTES,
        "lists of shards": 0 if shard is None else ranked * depth * MERGED_BYTES,
        "score blocks": SCORE_BYTES,
    }
    mapped = vectors_bytes(settings, sizes) + rows_bytes(sizes)
    moments: dict[str, dict[str, float]] = {"counting train items": {"users' numbers": 2 * sizes.users * INDEX}, "ranking": parts}
    return Need.of("ranker", "labeler", moments, "distill.top_depth", mapped)


def rankings_bytes(settings: Settings, sizes: Sizes) -> int:
    """Bytes of the teacher's rankings of all users on disk; 0 where no candidates are drawn from them, and beside a resident teacher."""
    if not sizes.taught or settings.distill.regime == "inline":
        return 0
    return sizes.users * min(candidate_policy(settings.distill).depth, sizes.items) * (4 + (1 + len(sizes.dims)) * FLOAT)


def evaluator(sizes: Sizes, dim: int, model: str, of_histories: dict[str, int] | None = None) -> Need:
    """Memory of a worker or a task that evaluates: users with held-out items, some at a time; vectors and train items are mapped.

    Args:
        sizes: Of the catalog.
        dim: Columns of the vectors.
        model: "teacher" or "student".
        of_histories: What a teacher scores histories with, by purpose.
    """
    users = min(USERS_AT_A_TIME_RANKED, sizes.users)
    parts = {
        "users' vectors": users * dim * FLOAT,
        "users' numbers": 3 * sizes.users * INDEX,
        "masks": 6 * train_rows(sizes, users),
        "score blocks": SCORE_BYTES,
        **(of_histories or {}),
    }
    return Need.of(f"evaluator ({model})", "evaluator", {"ranking": parts}, f"{model}.dim", sizes.nodes * dim * FLOAT + rows_bytes(sizes))
