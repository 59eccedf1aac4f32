"""Memory of a worker that tunes the prompt between rounds, in either engine."""

from dataclasses import replace

from ...core.objectives import candidate_policy
from ..settings import Settings
from . import kinds
from .block_sizes import Estimate, Seeds
from .label_needs import candidates_of
from .reduction import tower_parameters
from .sampled_needs import Moments, bounded, inference_bytes, mapped_files
from .sizes import Need, Sizes
from .student_needs import STUDENT_TABLES
from .teacher_needs import full_teacher, rows_with_gradients, sampled_teacher, teacher_floats, teacher_seeds
from .units import FLOAT, INDEX

ROLE = "prompt tuner"
FROZEN = 3  # sharded tables of the teacher's training that frozen ID rows do not have: Adam's moments and the best rows


def prompt_tuner(settings: Settings, sizes: Sizes, blocks: Estimate, most: Estimate) -> Need:
    """Memory of a worker that tunes the prompt: with the teacher whole in the full engine, over neighbour blocks in the sampled one.

    Args:
        settings: Of the run, with its engine.
        sizes: Of the catalog.
        blocks, most: Sizes of its neighbour blocks, expected and at most; the full engine does not ask for them.
    """
    if settings.cluster.engine == "full":
        return replace(full_teacher(settings, sizes), role=ROLE)
    expected, largest = (sampled_tuner(settings, sizes, estimate) for estimate in (blocks, most))
    rankings = min(candidate_policy(settings.distill).depth, sizes.items) * sizes.users * INDEX // 2
    mapped = mapped_files(settings, replace(sizes, held_out=0), 0) + rankings
    return bounded(ROLE, expected, largest, "sampling.fan_outs, student.train.batch_size or teacher.dim", mapped)


def sampled_tuner(settings: Settings, sizes: Sizes, estimate: Estimate) -> Moments:
    """Bytes at several moments: those of a teacher that is trained on the student's batches, but with candidate lists and frozen towers."""
    config, workers = settings.teacher, settings.cluster.num_workers
    train = replace(config.train, batch_size=settings.student.train.batch_size)
    cluster = replace(settings.cluster, micro_batches=1)
    on_lists = replace(settings, teacher=replace(config, train=train), cluster=cluster)
    batch, width = -(-train.batch_size // workers), candidates_of(settings, sizes)
    pairs = teacher_seeds(on_lists, sizes)
    lists = Seeds(pairs.examples, pairs.uniform + batch * (width - 2), pairs.further)
    blocks = estimate(lists, settings.sampling.fan_outs_of(kinds.num_hops(config)))
    moments = sampled_teacher(on_lists, replace(sizes, held_out=0), lambda seeds, fan_outs: blocks, lists)
    towers = tower_parameters(config, list(sizes.dims.values())) * FLOAT
    for name in ("training", "inference"):
        moments[name] = {**moments[name], "reduction layers and prompt, Adam and best": 0, "frozen reduction layers and prompt": towers}
    moments["training"]["rows with gradients"] = rows_with_gradients(settings, sizes, blocks, is_learnt=False)
    moments["training"]["scores of the lists"] = batch * width * (2 + 8 * (1 + len(sizes.dims))) * FLOAT
    return {**moments, "inference of the student": {"a chunk": inference_bytes(sizes, settings.student.dim)}}


def tuning_floats(settings: Settings, sizes: Sizes) -> int:
    """Counts the numbers in the sharded tables of prompt-tuning: those of the student, and those of a teacher with frozen ID rows."""
    return (
        STUDENT_TABLES * sizes.nodes * settings.student.dim + teacher_floats(settings, sizes) - FROZEN * sizes.nodes * settings.teacher.dim
    )
