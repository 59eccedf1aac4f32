"""What the figures of a plan depend on by the kind of a teacher or student; nowhere else in the plan is a kind asked for."""

from typing import cast

from ...core.config import StudentConfig, TeacherConfig
from ...core.linear.base import LinearTeacher
from ...core.linear.fit import CatalogCounts
from ...core.students import student_kind
from ...core.teacher import teacher_kind
from ...core.teacher.ensemble import parts_of
from ...core.vector_files import FINAL
from ..settings import Settings
from .sizes import Sizes
from .units import FLOAT, INDEX


def has_prompt(config: TeacherConfig) -> bool:
    """Whether a teacher's artifact holds the prompt's vectors."""
    return config.prompt and teacher_kind(config).has_prompt


def whitens(config: TeacherConfig) -> bool:
    """Whether a teacher decorrelates the features before it reduces them."""
    return config.whiten and teacher_kind(config).has_towers


def final_dim(config: TeacherConfig, sizes: Sizes) -> int:
    """Columns of a teacher's final vectors; of a fitted one the most that it may have."""
    kind = teacher_kind(config)
    if issubclass(kind, LinearTeacher):
        return kind.num_columns_in_all(config.linear, counts_of(sizes))
    if kind.is_imported:
        return sizes.imported[config.vectors][FINAL]
    return kind.final_dim(config, len(sizes.dims))


def modal_dim(config: TeacherConfig, sizes: Sizes) -> int:
    """Columns of a teacher's vectors of one modality, the largest of all modalities and of an ensemble's components."""
    imported = [sizes.imported[each.vectors] for each in components(config) if is_imported(each)]
    trained = [each.dim for each in components(config) if not is_imported(each)]
    return max([*trained, *(dim for dims in imported for name, dim in dims.items() if name != FINAL)], default=config.dim)


def components(config: TeacherConfig) -> list[TeacherConfig]:
    """Settings of what a teacher trains or fits, one after the other: an ensemble its components, another teacher itself."""
    return list(parts_of(config).values())


def settings_of_components(settings: Settings) -> list[Settings]:
    """Settings of runs that train or fit each component of an ensemble alone; those of the run itself for a teacher of another kind."""
    return [settings.with_teacher(each) for each in components(settings.teacher)] if is_ensemble(settings.teacher) else [settings]


def is_ensemble(config: TeacherConfig) -> bool:
    """Whether a teacher adds up the scores of others."""
    return teacher_kind(config).is_ensemble


def is_fitted(config: TeacherConfig) -> bool:
    """Whether a teacher is fitted without steps."""
    return teacher_kind(config).is_fitted


def is_imported(config: TeacherConfig) -> bool:
    """Whether a teacher was trained elsewhere, and its vectors are read."""
    return teacher_kind(config).is_imported


def takes_steps(config: TeacherConfig) -> bool:
    """Whether a teacher is trained in steps."""
    return teacher_kind(config).takes_steps()


def fitting_bytes(config: TeacherConfig, sizes: Sizes) -> int:
    """Bytes that fitting holds at its largest moment, beside the graph and the features; 0 for kinds that are trained."""
    kind = teacher_kind(config)
    return kind.fitting_bytes_in_all(config.linear, counts_of(sizes)) if issubclass(kind, LinearTeacher) else 0


def similarity_bytes(config: TeacherConfig, sizes: Sizes) -> int:
    """Bytes of the item similarities with which a teacher scores histories, those of all components of an ensemble; mostly 0."""
    parts = [(teacher_kind(each), each.linear) for each in components(config)]
    return sum(kind.similarity_bytes(linear, counts_of(sizes)) for kind, linear in parts if issubclass(kind, LinearTeacher))


def block_columns(config: TeacherConfig, sizes: Sizes) -> tuple[int, int]:
    """Columns of the blocks of users and of items that a fitted teacher computes on where rows are sharded, all of them together."""
    return cast(type[LinearTeacher], teacher_kind(config)).block_columns(config.linear, counts_of(sizes))


def counts_of(sizes: Sizes) -> CatalogCounts:
    """The counts that a linear model's memory depends on."""
    return CatalogCounts(sizes.users, sizes.items, sizes.edges, sizes.read)


def num_hops(config: TeacherConfig) -> int:
    """Hops over the graph that a teacher's vectors reach, where its engine samples."""
    return teacher_kind(config).num_hops(config)


def num_propagations(config: TeacherConfig, num_modalities: int) -> float:
    """Sums over all edges, in both directions, that the vectors of a teacher take in the full engine."""
    kind = teacher_kind(config)
    on_modalities = num_modalities * max(1, 2 * config.modality_layers) if kind.has_towers else 0
    return 2 * kind.num_layers(config) + on_modalities


def own_learnt_bytes(config: TeacherConfig, num_modalities: int, num_users: int, num_items: int) -> int:
    """Bytes of what only this kind learns, with gradients, Adam's moments and the best copy."""
    return 5 * teacher_kind(config).further_parameters(config, num_users, num_items, num_modalities) * FLOAT


def item_graph_bytes(config: TeacherConfig, num_modalities: int, num_items: int) -> int:
    """Bytes of a teacher's item-item graphs, with what the gradients of the learnt half of them take; 0 for kinds without."""
    edges = teacher_kind(config).item_graph_edges(config, num_items, num_modalities)
    return edges * (3 * INDEX + 3 * FLOAT) + edges // 2 * 8 * FLOAT


def searches_neighbours(config: TeacherConfig) -> bool:
    """Whether a teacher compares the features of all items before it trains."""
    return teacher_kind(config).item_graph_edges(config, 1, 1) > 0


def student_hops(config: StudentConfig) -> int:
    """Hops over the graph that a student's vectors reach."""
    return student_kind(config).num_hops(config)


def learns_tables(config: StudentConfig) -> bool:
    """Whether a student learns its tables; another one holds the teacher's vectors as they are."""
    return student_kind(config).learns_rows


def student_step_tables(config: StudentConfig) -> float:
    """What a step of the full engine holds beside the student's weights, in tables of one vector of `student.dim` for each node.

    Most of it is free memory in pieces too small for the next table: tables of a step come from the heap and go back to it. Measured for
    0 to 3 layers at 64, 128 and 256 dimensions. A student that learns its tables holds 8 of them, 2.4 more for each layer that adds up
    neighbours, and 6.3 more for each layer with a map and an activation of its own; perceptrons on frozen vectors hold 4.3 for each layer.
    """
    if not learns_tables(config):
        return 4.3 * config.layers
    return 8 + student_hops(config) * (6.3 if student_maps(config) else 2.4)


def student_maps(config: StudentConfig) -> int:
    """Parameters of a student beside its tables."""
    kind = student_kind(config)
    return sum(p.numel() for p in kind(config, config.dim, config.dim).parameters()) if kind.learns_rows else 0
