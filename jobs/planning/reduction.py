"""Memory of the feature reduction: towers and prompt, what their passes hold, and the preparation of the features."""

import itertools

from ...core.config import TeacherConfig
from ...core.features import chunk_rows
from ..settings import Settings
from . import kinds
from .sizes import Sizes
from .units import DOUBLE, FLOAT


def tower_parameters(config: TeacherConfig, dims: list[int]) -> int:
    """Counts the parameters of reduction layers and prompt; `dims` are the columns d_m of the modalities."""
    sizes = [[dim, *config.hidden, config.dim] for dim in dims]
    return sum(a * b + b for s in sizes for a, b in itertools.pairwise(s)) + 2 * (config.dim**2 + config.dim)


def reduction_bytes(settings: Settings, sizes: Sizes) -> int:
    """Bytes of reduction layers and prompt with gradients, Adam's moments and the best copy, under the ZeRO stage.

    Offloaded state counts alike: on a host without a GPU it lies in the same memory.
    """
    whole = FLOAT * tower_parameters(settings.teacher, list(sizes.dims.values()))
    shard = whole / settings.cluster.num_workers
    # Weights, gradients and moments; stage 1 adds its float32 copy, 2 reduces gradients into shards, 3 has a layer whole while it runs.
    held = {0: 4 * whole, 1: 2 * whole + 4 * shard, 2: 2 * whole + 4 * shard, 3: 5 * shard}
    if settings.teacher.reduction_dtype == "bfloat16":
        held |= {1: 2 * whole + 3 * shard, 2: whole + 4 * shard, 3: 4.5 * shard}
    return int(held[settings.cluster.zero_stage] + whole)


def whitening_bytes(settings: Settings, sizes: Sizes) -> int:
    """Bytes of the matrices that features are decorrelated with, float64 and float32 [d_m, d_m]."""
    return (DOUBLE + FLOAT) * sum(dim**2 for dim in sizes.dims.values()) if kinds.whitens(settings.teacher) else 0


def standardisation_bytes(sizes: Sizes, dim: int) -> int:
    """Bytes of Gram matrix, covariance and eigenvectors (float64 [d_m, d_m]) of the widest modality, and of the prompt's sums."""
    return DOUBLE * (6 * sizes.largest**2 + 2 * dim * sizes.width)


def feature_chunk_bytes(rows: int, dim: int) -> int:
    """Bytes of a chunk's feature rows as they are read, and standardised in float64."""
    return min(rows, chunk_rows(dim)) * dim * (3 * FLOAT + DOUBLE)


def reduction_floats(settings: Settings, count: int) -> int:
    """Counts the floats that live at once for an item that is reduced: outputs, prompt, dropout, hidden layers, and their gradients.

    With activation checkpointing one modality's hidden layers live at a time.
    """
    config, towers = settings.teacher, 1 if settings.cluster.checkpoint_activations else count
    return count * 8 * config.dim + towers * 7 * sum(config.hidden)
