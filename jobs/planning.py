"""`plan`: what each role will need, from the dataset's manifest and the settings, before anything expensive starts."""

import itertools
from dataclasses import dataclass
from typing import Any

from ..core.config import TeacherConfig
from ..core.errors import InputError
from ..graph_store.dataset import Dataset
from .settings import Settings

FLOAT = 4
GIB = 2**30


@dataclass(frozen=True)
class Need:
    """Bytes of one role: what it holds for good, and its name."""

    role: str
    parts: dict[str, int]
    setting: str

    @property
    def total(self) -> int:
        return sum(self.parts.values())


def needs_of(settings: Settings, dataset: Dataset) -> list[Need]:
    """Memory of every role, from counts alone. Activations count the vectors that one step keeps for its backward pass."""
    users, items = dataset.num_users, dataset.num_items
    edges = dataset.manifest["num_interactions"]["train"]
    workers, nodes = settings.cluster.num_workers, users + items
    structure = 2 * edges * 8 + (nodes + 2) * 8 + edges * 16  # both directions, pointers, and the examples
    needs = [Need("graph server", {"structure": (4 * edges * 8 + nodes * 40) // settings.graph.num_parts}, "graph.num_parts")]
    if settings.distill.use_teacher and dataset.modalities:
        needs.append(Need("teacher worker", _teacher_worker(settings, dataset, structure), "cluster.num_workers or teacher.dim"))
    student = settings.student
    parts = {"structure": structure, "tables and Adam": 4 * nodes * student.dim * FLOAT}
    parts["activations"] = (3 + 4 * student.layers) * nodes * student.dim * FLOAT
    width = 1 + settings.distill.num_candidates
    count = max(1, len(dataset.modalities))
    block_rows = max(settings.labels.block_rows, student.train.batch_size)
    if settings.distill.use_teacher and dataset.modalities:
        parts["embedding targets"] = count * items * settings.teacher.dim * FLOAT
        parts["candidate vectors of a step"] = 3 * student.train.batch_size // workers * width * student.dim * FLOAT
        block = block_rows * (4 + width * (4 + 2 + 2 * count))
        vectors = (2 + 2 * count) * nodes * settings.teacher.dim * FLOAT // 2
        scoring = 3 * block_rows * width * settings.teacher.dim * FLOAT
        labeler = {"teacher vectors": vectors, "structure": structure, "scoring a block": scoring, "block": 2 * block}
        needs.append(Need("labeler", labeler, "labels.block_rows or distill.num_uniform"))
    needs.append(Need("student worker", parts, "student.dim or student.train.batch_size"))
    return needs


def _teacher_worker(settings: Settings, dataset: Dataset, structure: int) -> dict[str, int]:
    config: TeacherConfig = settings.teacher
    users, items, workers = dataset.num_users, dataset.num_items, settings.cluster.num_workers
    nodes, width = users + items, sum(m.dim for m in dataset.modalities.values())
    count = len(dataset.modalities)
    towers = tower_parameters(config, [m.dim for m in dataset.modalities.values()])
    shards = workers if settings.cluster.zero_stage else 1
    vectors = 3 + 4 * config.layers + 4 * count * (config.modality_layers + 1)
    return {
        "structure": structure,
        "ID tables and Adam": 4 * nodes * config.dim * FLOAT,
        "reduction layers, prompt and Adam": 2 * towers * FLOAT + 2 * towers * FLOAT // shards,
        "features of its shard": items // workers * width * FLOAT * 3,
        "prompt constants": nodes * config.dim * FLOAT + count * config.dim * width * FLOAT,
        "activations": vectors * nodes * config.dim * FLOAT,
    }


def tower_parameters(config: TeacherConfig, dims: list[int]) -> int:
    """Parameters of reduction layers and prompt."""
    sizes = [[dim, *config.hidden, config.dim] for dim in dims]
    return sum(a * b + b for s in sizes for a, b in itertools.pairwise(s)) + 2 * (config.dim**2 + config.dim)


def make_plan(settings: Settings, dataset: Dataset, available: int | None) -> dict:
    """The plan: engine, memory of every role and bytes between workers in a step.

    Args:
        available: Bytes of memory of the smallest host that runs workers, None where it is not known yet (an idle autoscaled cluster).

    Raises:
        InputError: a role needs more than that; the message gives the largest number and the setting that changes it.
    """
    needs, workers = needs_of(settings, dataset), settings.cluster.num_workers
    count, dim = len(dataset.modalities), settings.teacher.dim
    nodes = dataset.num_users + dataset.num_items
    exchanged = 0 if workers == 1 else 4 * count * dataset.num_items * dim * FLOAT + 2 * nodes * dim * FLOAT
    plan: dict[str, Any] = {
        "engine": "full",
        "available_bytes": available,
        "roles": {need.role: {"bytes": need.total, "parts": need.parts} for need in needs},
        "bytes_between_workers_a_step": exchanged,
        "label_bytes_an_epoch": dataset.manifest["num_interactions"]["train"]
        * (16 + (1 + settings.distill.num_candidates) * (4 + 2 + 2 * count))
        if count and settings.distill.use_teacher
        else 0,
    }
    for need in needs:
        if available is not None and need.total > available:
            part, size = max(need.parts.items(), key=lambda p: p[1])
            raise InputError(
                f"plan: a {need.role} needs {need.total / GIB:.1f} GiB and the smallest host has {available / GIB:.1f} GiB; most of it is "
                f"{part} ({size / GIB:.1f} GiB). Change {need.setting}, or run on larger hosts"
            )
    return plan


def describe_plan(plan: dict) -> str:
    """The plan as a table for people."""
    lines = [f"engine: {plan['engine']} (the train graph fits one worker)", f"{'role':<16} {'memory':>12}   largest part"]
    for role, need in plan["roles"].items():
        part, size = max(need["parts"].items(), key=lambda p: p[1])
        lines.append(f"{role:<16} {need['bytes'] / 2**20:>8.1f} MiB   {part}: {size / 2**20:.1f} MiB")
    lines.append(f"between workers  {plan['bytes_between_workers_a_step'] / 2**20:>8.1f} MiB a step")
    lines.append(f"labels           {plan['label_bytes_an_epoch'] / 2**20:>8.1f} MiB an epoch")
    return "\n".join(lines)
