"""Memory of a student's worker, in either engine."""

from dataclasses import replace

from ...core.linear.factors import width_of
from ..settings import Settings
from . import kinds
from .block_sizes import Estimate, Seeds
from .label_needs import candidates_of, histories, labels_in_hand, vectors_bytes
from .sampled_needs import Moments, block_bytes, bounded, inference_bytes, mapped_files, validation_bytes
from .sizes import LOADING_ARRAYS, ORDER_ARRAYS, SCORE_BYTES, VISITED_ARRAYS, Need, Sizes
from .teacher_needs import inline_teacher
from .units import DOUBLE, FLOAT, INDEX

STUDENT_TABLES = 4 + 3  # sharded tables of the sampled student: IDs with Adam and best, final vectors, two layers


def student_worker(settings: Settings, sizes: Sizes, blocks: Estimate, most: Estimate) -> Need:
    """Memory of a student's worker with a chosen engine, and of the teacher that is resident in it where the regime is inline.

    Args:
        settings: Of the run, with its engine.
        sizes: Of the catalog.
        blocks, most: Sizes of its neighbour blocks, expected and at most; the full engine does not ask for them.
    """
    if settings.cluster.engine == "full":
        need = full_student(settings, sizes)
        with_teacher = sizes.taught and settings.distill.regime == "inline"
        parts = {**need.parts, **(inline_teacher(settings, sizes) if with_teacher else {})}
        return replace(need, parts=parts, bound=need.base + sum(parts.values()))
    expected, largest = (sampled_student(settings, sizes, estimate) for estimate in (blocks, most))
    mapped = mapped_files(settings, sizes, settings.student.dim)
    return bounded("student worker", expected, largest, "sampling.fan_outs, student.train.batch_size or student.dim", mapped)


def full_student(settings: Settings, sizes: Sizes) -> Need:
    """Memory of a worker of the full engine: the graph and all tables."""
    config, workers, taught = settings.student, settings.cluster.num_workers, sizes.taught
    row, width = config.dim * FLOAT, candidates_of(settings, sizes)
    batch, tables, count = -(-config.train.batch_size // workers), sizes.nodes * row, len(sizes.dims)
    held: dict[str, float] = {"graph": sizes.graph + 2 * sizes.edges * INDEX}
    if kinds.learns_tables(config):
        held["tables, Adam and best"] = 5 * tables
    else:
        held["frozen vectors"] = sizes.nodes * kinds.final_dim(settings.teacher, sizes) * FLOAT
    mapped = 0.0
    if taught:
        mapped = vectors_bytes(settings, sizes)
        held["labels"] = labels_in_hand(settings, sizes)
        if settings.distill.num_student:
            held.update(histories(settings, sizes))
    factors = 0
    if taught and settings.student.warm_start and kinds.similarity_bytes(settings.teacher, sizes):
        factors = sizes.nodes * width_of(config.dim, sizes.items) * (2 * FLOAT + 3 * DOUBLE)
        factors += 3 * kinds.similarity_bytes(settings.teacher, sizes) + 4 * sizes.edges * INDEX  # with the turned matrices
    own = _own_candidates(settings, sizes) if taught and settings.distill.num_student else {}
    held.update(own)
    return Need.of(
        "student worker",
        "worker",
        {
            "loading": {"graph": sizes.graph + LOADING_ARRAYS * sizes.edges * INDEX},
            **({"warm start": {"graph": held["graph"], "closest tables": factors}} if factors else {}),
            **(
                {"ranking": {**held, "vectors": 6 * tables, "ranking anew": own["student's ranking"], "score blocks": SCORE_BYTES}}
                if own
                else {}
            ),
            "training": {
                **held,
                "activations": kinds.student_step_tables(settings.student) * tables,
                "scores of the batch": batch * (3 * row + width * (2 + 8 * (1 + count)) * FLOAT),
                "order of the epoch": 0 if taught else ORDER_ARRAYS * sizes.edges * INDEX,
            },
            "validation": {**held, "vectors": 6 * tables, "score blocks": SCORE_BYTES},
            "checkpoint": {**held, "copies": 4 * tables},
        },
        "student.dim, student.train.batch_size or cluster.engine",
        mapped,
    )


def _own_candidates(settings: Settings, sizes: Sizes) -> dict[str, float]:
    """Bytes of candidates that the student draws from its own ranking: the ranking, and the teacher's rows that score a batch's."""
    batch, distill = -(-settings.student.train.batch_size // settings.cluster.num_workers), settings.distill
    columns = kinds.final_dim(settings.teacher, sizes) + len(sizes.dims) * kinds.modal_dim(settings.teacher, sizes)
    lists = batch * (1 + distill.num_student)
    rows = min(sizes.users, batch) + min(sizes.items, lists)
    scores = lists * (2 + 3 * len(sizes.dims)) * FLOAT + 3 * lists * INDEX
    ranking = sizes.users * min(distill.student_depth, sizes.items) * INDEX
    return {"student's ranking": ranking, "teacher's scores of the student's candidates": rows * columns * FLOAT + scores}


def student_seeds(settings: Settings, sizes: Sizes) -> Seeds:
    """What one worker's blocks start from in the student's step; top-ranked candidates count as uniform ones."""
    batch = -(-settings.student.train.batch_size // settings.cluster.num_workers)
    return Seeds(batch, batch * (candidates_of(settings, sizes) - 1))


def sampled_student(settings: Settings, sizes: Sizes, estimate: Estimate) -> Moments:
    """Bytes of a worker of the sampled engine at several moments, for block sizes as estimated."""
    config, workers, count = settings.student, settings.cluster.num_workers, len(sizes.dims)
    blocks = estimate(student_seeds(settings, sizes), settings.sampling.fan_outs_of(kinds.student_hops(config)))
    row, width, batch = config.dim * FLOAT, candidates_of(settings, sizes), -(-config.train.batch_size // workers)
    rows = (blocks.users + blocks.items) * row
    return {
        "training": {
            "blocks in flight": block_bytes(settings, blocks),
            "rows with gradients": (17 if workers == 1 else 20) * rows,
            "scores of the batch": batch * (3 * row + width * (2 + 8 * (1 + count)) * FLOAT),
            "labels": labels_in_hand(settings, sizes) if sizes.taught else 0,
            "order of the users": VISITED_ARRAYS[config.examples] * sizes.users * INDEX,
        },
        "inference": {"a chunk": inference_bytes(sizes, config.dim), "validation": validation_bytes(sizes, config.dim, workers)},
    }
