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
    if settings.cluster.engine == "sampled":
        return [*needs, *_sampled_needs(settings, dataset)]
    if settings.distill.use_teacher and dataset.modalities:
        needs.append(Need("teacher worker", _teacher_worker(settings, dataset, structure), "cluster.num_workers or teacher.dim"))
    student = settings.student
    parts = {"structure": structure, "tables and Adam": 4 * nodes * student.dim * FLOAT}
    parts["activations"] = (3 + 4 * student.layers) * nodes * student.dim * FLOAT
    width = 1 + settings.distill.num_candidates
    count = max(1, len(dataset.modalities))
    if settings.distill.use_teacher and dataset.modalities:
        parts["embedding targets"] = count * items * settings.teacher.dim * FLOAT
        parts["candidate vectors of a step"] = 3 * student.train.batch_size // workers * width * student.dim * FLOAT
        needs.append(_labeler(settings, dataset, structure))
    needs.append(Need("student worker", parts, "student.dim or student.train.batch_size"))
    return needs


def _labeler(settings: Settings, dataset: Dataset, structure: int) -> Need:
    nodes, dim, count = dataset.num_users + dataset.num_items, settings.teacher.dim, len(dataset.modalities)
    width, block_rows = 1 + settings.distill.num_candidates, max(settings.labels.block_rows, settings.student.train.batch_size)
    block = block_rows * (4 + width * (4 + 2 + 2 * count))
    vectors = (2 + 2 * count) * nodes * dim * FLOAT // 2
    parts = {
        "teacher vectors": vectors,
        "structure": structure,
        "scoring a block": 3 * block_rows * width * dim * FLOAT,
        "block": 2 * block,
    }
    return Need("labeler", parts, "labels.block_rows or distill.num_uniform")


def block_rows_of(settings: Settings, dataset: Dataset, seeds: tuple[int, int], hops: int) -> tuple[int, int, int]:
    """Upper bounds for one worker's blocks: users and items at the deepest level, and edges of all hops in both directions.

    Args:
        seeds: Users and items at level 0.
    """
    (users, items), edges = seeds, 0
    for fan_out in settings.sampling.fan_outs_of(hops):
        drawn = [dataset.manifest["num_interactions"]["train"] if fan_out < 0 else n * fan_out for n in (users, items)]
        drawn = [min(d, dataset.manifest["num_interactions"]["train"]) for d in drawn]
        edges += sum(drawn)
        users, items = min(dataset.num_users, users + drawn[1]), min(dataset.num_items, items + drawn[0])
    return users, items, edges


def _sampled_needs(settings: Settings, dataset: Dataset) -> list[Need]:
    """The sampled engine: what a part's host shares among its workers, and what each worker adds for the batches in flight."""
    parts, workers, count = settings.graph.num_parts, settings.cluster.num_workers, len(dataset.modalities)
    nodes, teacher, student = dataset.num_users + dataset.num_items, settings.teacher, settings.student
    in_flight = 1 + settings.sampling.prefetch
    needs = []

    def worker(name: str, seeds: tuple[int, int], hops: int, width: int, dim: int, features: int, setting: str) -> None:
        users, items, edges = block_rows_of(settings, dataset, seeds, hops)
        rows = (users + items) * width * dim * FLOAT
        found = {
            "blocks in flight": in_flight * (edges * 2 * 12 + (users + items) * 8),
            "rows with gradients": 4 * rows + 2 * hops * (users + items) * dim * FLOAT,
        }
        if features:
            kept = min(items, -(-dataset.num_items // workers)) * features * FLOAT
            found["raw features kept"] = kept if kept <= settings.sampling.keep_mib * 2**20 else 0
        needs.append(Need(name, found, setting))

    def shared(name: str, tables: int, dim: int) -> None:
        needs.append(Need(name, {"tables": tables * nodes * dim * FLOAT // parts}, "graph.num_parts"))

    if settings.distill.use_teacher and count:
        from ..core.teacher import num_hops

        batch = -(-teacher.train.batch_size // workers)
        shared("teacher tables of a part", 4 + 1 + 3 + count + teacher.prompt, teacher.dim)
        width = sum(m.dim for m in dataset.modalities.values())
        worker("teacher worker", (batch, 2 * batch), num_hops(teacher), 2 + count, teacher.dim, width, "sampling.fan_outs")
        structure = 2 * dataset.manifest["num_interactions"]["train"] * 8 + (nodes + 2) * 8
        needs.append(_labeler(settings, dataset, structure))
    batch = -(-student.train.batch_size // workers)
    candidates = 1 + (settings.distill.num_candidates if settings.distill.use_teacher and count else 1)
    shared("student tables of a part", 4 + 3, student.dim)
    hops = 0 if student.kind == "mf" else student.layers
    worker("student worker", (batch, batch * candidates), hops, 1, student.dim, 0, "sampling.fan_outs")
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
    if workers == 1:
        exchanged = 0
    elif settings.cluster.engine == "sampled":
        from ..core.teacher import num_hops

        batch = -(-settings.teacher.train.batch_size // workers)
        users, items, _ = block_rows_of(settings, dataset, (batch, 2 * batch), num_hops(settings.teacher))
        widths = users * (1 + settings.teacher.prompt) + items * (1 + settings.teacher.prompt + count)
        exchanged = (workers - 1) * (2 * widths * dim * FLOAT + (users + items) * 8)
    else:
        exchanged = 4 * count * dataset.num_items * dim * FLOAT + 2 * nodes * dim * FLOAT
    plan: dict[str, Any] = {
        "engine": settings.cluster.engine,
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
    bound = ", upper bounds" if plan["engine"] == "sampled" else ""
    lines = [f"engine: {plan['engine']}{bound}", f"{'role':<24} {'memory':>12}   largest part"]
    for role, need in plan["roles"].items():
        part, size = max(need["parts"].items(), key=lambda p: p[1])
        lines.append(f"{role:<24} {need['bytes'] / 2**20:>8.1f} MiB   {part}: {size / 2**20:.1f} MiB")
    lines.append(f"{'between workers':<24} {plan['bytes_between_workers_a_step'] / 2**20:>8.1f} MiB a step")
    lines.append(f"{'labels':<24} {plan['label_bytes_an_epoch'] / 2**20:>8.1f} MiB an epoch")
    return "\n".join(lines)
