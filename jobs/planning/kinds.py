"""What the figures of a plan depend on by the kind of a teacher or student; nowhere else in the plan is a kind asked for."""

from ...core.config import StudentConfig, TeacherConfig
from ...core.teacher import final_dim as method_final_dim
from ...core.teacher import num_hops as method_num_hops
from .units import FLOAT, INDEX


def reads_features(config: TeacherConfig) -> bool:
    """Whether a teacher learns from the modalities, and so has vectors and label scores for each of them."""
    return config.reads_features


def has_prompt(config: TeacherConfig) -> bool:
    """Whether a teacher's artifact holds the prompt's vectors."""
    return config.prompt and not config.is_baseline


def whitens(config: TeacherConfig) -> bool:
    """Whether a teacher decorrelates the features before it reduces them."""
    return config.whiten and not config.is_baseline


def final_dim(config: TeacherConfig, num_modalities: int) -> int:
    """Columns of a teacher's final vectors."""
    if config.kind == "vbpr":
        return config.dim * (1 + num_modalities) + 1
    return config.dim if config.is_baseline else method_final_dim(config, num_modalities)


def num_hops(config: TeacherConfig) -> int:
    """Hops over the graph that a teacher's vectors reach, where its engine samples."""
    return method_num_hops(config)


def num_propagations(config: TeacherConfig, num_modalities: int) -> float:
    """Sums over all edges, in both directions, that the vectors of a teacher take in the full engine."""
    on_modalities = 0 if config.is_baseline else num_modalities * max(1, 2 * config.modality_layers)
    return 2 * config.graph_layers + on_modalities


def own_learnt_bytes(config: TeacherConfig, num_modalities: int, num_users: int) -> int:
    """Bytes of what only this kind learns, with gradients, Adam's moments and the best copy: VBPR's users have tastes by modality."""
    return 5 * num_modalities * num_users * config.dim * FLOAT if config.kind == "vbpr" else 0


def item_graph_bytes(config: TeacherConfig, num_modalities: int, num_items: int) -> int:
    """Bytes of LATTICE's item graphs, two a modality, with what their weights' gradients take; 0 for other kinds."""
    if config.kind != "lattice":
        return 0
    edges = config.item_neighbours * num_items
    return 2 * num_modalities * edges * (3 * INDEX + 3 * FLOAT) + num_modalities * edges * 8 * FLOAT


def searches_neighbours(config: TeacherConfig) -> bool:
    """Whether a teacher compares the features of all items before it trains, as LATTICE does."""
    return config.kind == "lattice"


def student_hops(config: StudentConfig) -> int:
    """Hops over the graph that a student's vectors reach."""
    return 0 if config.kind == "mf" else config.layers


def student_maps(config: StudentConfig) -> int:
    """Parameters of a student's layers beside its tables."""
    return config.layers * (config.dim + 1) * config.dim if config.kind == "gcn" else 0
