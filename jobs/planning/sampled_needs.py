"""Memory that a worker of the sampled engine needs, whichever model it trains."""

from dataclasses import replace

from ...distributed.engines.sampled.inference import CHUNK_EDGES, CHUNK_ROWS
from ..settings import Settings
from .block_sizes import BlockSizes
from .sizes import BLOCKS_IN_HAND, SCORE_BYTES, Need, Sizes
from .units import FLOAT, INDEX

Moments = dict[str, dict[str, float]]  # bytes by purpose, by moment


def block_bytes(settings: Settings, blocks: BlockSizes) -> float:
    """Bytes of the blocks in hand and in waiting: both directions of every hop with their transposes, ids and exchanges."""
    rows = blocks.users + blocks.items + blocks.further_items
    one = blocks.edges * (2 * INDEX + 2 * FLOAT) + 2 * INDEX * (blocks.asked + rows) + 5 * INDEX * rows
    return (BLOCKS_IN_HAND + settings.sampling.prefetch) * one + 6 * INDEX * (blocks.edges + blocks.seen)


def inference_bytes(sizes: Sizes, dim: int) -> float:
    """Bytes of a chunk of exact inference: its edges, and the rows of `dim` columns that they read."""
    largest = 0.0
    for own, other in ((sizes.users, sizes.items), (sizes.items, sizes.users)):
        edges = min(sizes.edges * min(1.0, CHUNK_ROWS / own), CHUNK_EDGES)
        largest = max(largest, edges * (5 * INDEX + FLOAT) + min(other, edges) * dim * FLOAT + 3 * min(own, CHUNK_ROWS) * dim * FLOAT)
    return largest


def validation_bytes(sizes: Sizes, dim: int, workers: int) -> float:
    """Bytes of a worker's share of the validation users: their vectors of `dim` columns, held-out and seen items, and a block of scores."""
    users = min(sizes.users, sizes.held_out) / workers
    return users * dim * FLOAT + 6 * INDEX * sizes.edges * users / sizes.users + SCORE_BYTES if sizes.held_out else 0


def mapped_files(settings: Settings, sizes: Sizes, dim: int) -> float:
    """Bytes of files that a worker reads all the time: examples, structure, node numbers, features, and the items it validates with."""
    structure = (2 * sizes.edges * FLOAT + sizes.nodes * INDEX) / settings.graph.num_parts
    examples = sizes.edges * 4 + sizes.users * INDEX + sizes.nodes * INDEX
    return (
        structure
        + examples
        + sizes.items / settings.cluster.num_workers * sizes.stored
        + (sizes.items * dim * FLOAT if sizes.held_out else 0)
    )


def bounded(role: str, expected: Moments, most: Moments, setting: str, mapped: float) -> Need:
    """Makes a worker's need from its moments for blocks of expected size, bounded by those for the largest blocks.

    Args:
        role: The worker, in words.
        expected, most: The moments.
        setting: Settings that change it, in words.
        mapped: Bytes of memory-mapped files.
    """
    need, bound = (Need.of(role, "worker", moments, setting, mapped) for moments in (expected, most))
    return replace(need, bound=bound.total)
