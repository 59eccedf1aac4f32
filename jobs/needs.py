"""Memory of every process of a run, from the dataset's counts and the settings: anonymous and shared pages at the largest moment.

Pages of files that are memory-mapped (features, pointers, labels, vectors of earlier verbs) are counted apart: the system takes them back
when it needs memory. The figures for what is not a table (activations, temporaries) are counts of the arrays that a step holds at once;
`tests/jobs/test_plan_of_runs.py` holds them against stages that run.
"""

import itertools
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

from ..core.config import TeacherConfig
from ..core.features import chunk_rows
from ..core.teacher import final_dim, num_hops
from ..distributed.teacher_artifact import ROWS_A_SHARD
from ..graph_store.dataset import Dataset
from .block_sizes import BlockSizes, Seeds
from .settings import Settings

FLOAT, INDEX, DOUBLE = 4, 8, 8
MIB, GIB = 2**20, 2**30
# What a process has before it holds anything of a catalog, measured on Linux with the versions of constraints.txt.
BASE = {
    "driver": 430 * MIB,
    "Ray": 1350 * MIB,  # its daemons, agents and idle processes on one machine, Ray Train's controller, the servers' supervisor
    "graph server": 410 * MIB,  # DGL's process and the actor that owns it
    "worker": 400 * MIB,  # Ray, torch, DGL's client, DeepSpeed
    "labeler": 240 * MIB,
    "evaluator": 300 * MIB,
}
SCORE_BYTES = 64 * MIB  # a block of scores with its sorts, and the metrics' own arrays
# Temporaries over all interactions while an epoch's order is computed, and while the graph is built: int64 arrays that live at once.
ORDER_ARRAYS, LOADING_ARRAYS = 12, 12
CHUNK_ROWS, CHUNK_EDGES = 16_384, 1 << 20  # of exact inference, as distributed/layerwise.py, whose import would load DGL
BLOCKS_IN_HAND = 2  # one that is trained on, one that is being made


@dataclass(frozen=True)
class Need:
    """Memory of one process, bytes.

    Attributes:
        role: What it is, for people.
        base: Of its libraries.
        parts: What it holds at its largest moment, anonymous and shared.
        moment: Which that is.
        mapped: Pages of files that it reads again and again.
        bound: At most, where `parts` are expectations.
        setting: What changes it.
    """

    role: str
    base: int
    parts: dict[str, int]
    moment: str
    mapped: int
    bound: int
    setting: str

    @property
    def total(self) -> int:
        return self.base + sum(self.parts.values())

    @staticmethod
    def of(
        role: str, kind: str, moments: Mapping[str, Mapping[str, float]], setting: str, mapped: float = 0, bound: int | None = None
    ) -> "Need":
        """From the parts at several moments: the largest counts."""
        moment, parts = max(moments.items(), key=lambda entry: sum(entry[1].values()))
        whole = {name: int(size) for name, size in parts.items() if int(size)}
        return Need(role, BASE[kind], whole, moment, int(mapped), bound or BASE[kind] + sum(whole.values()), setting)


@dataclass(frozen=True)
class Sizes:
    """Counts that memory depends on.

    Attributes:
        users, items, edges: Of the train graph.
        dims: d_m by modality.
        stored: Bytes of a raw feature row over all modalities, as graph/ keeps it.
        held_out: Validation interactions.
    """

    users: int
    items: int
    edges: int
    dims: dict[str, int]
    stored: int
    held_out: int

    def read_by(self, config: TeacherConfig) -> "Sizes":
        """What is left of the modalities for a teacher: none, where it reads no features and labels carry no scores by modality."""
        return self if config.reads_features else replace(self, dims={}, stored=0)

    @staticmethod
    def of(dataset: Dataset, features: str) -> "Sizes":
        """Args: features: graph.features."""
        counts, infos = dataset.manifest["num_interactions"], dataset.modalities
        if features == "int8":
            stored = sum(info.dim + FLOAT for info in infos.values())  # and a scale
        else:
            stored = sum(info.dim * (2 if info.dtype == "float16" else FLOAT) for info in infos.values())
        return Sizes(
            dataset.num_users, dataset.num_items, counts["train"], {m: i.dim for m, i in infos.items()}, stored, counts["validation"]
        )

    @property
    def nodes(self) -> int:
        return self.users + self.items

    @property
    def width(self) -> int:
        """Σ d_m."""
        return sum(self.dims.values())

    @property
    def largest(self) -> int:
        """The largest d_m."""
        return max(self.dims.values(), default=0)

    @property
    def graph(self) -> int:
        """Bytes of a `BipartiteGraph`."""
        return 2 * self.edges * (INDEX + FLOAT) + self.nodes * INDEX


def tower_parameters(config: TeacherConfig, dims: list[int]) -> int:
    """Parameters of reduction layers and prompt."""
    sizes = [[dim, *config.hidden, config.dim] for dim in dims]
    return sum(a * b + b for s in sizes for a, b in itertools.pairwise(s)) + 2 * (config.dim**2 + config.dim)


def reduction_bytes(settings: Settings, sizes: Sizes) -> int:
    """Reduction layers and prompt with gradients, Adam's moments and the best copy, under the ZeRO stage.

    Offloaded state counts alike: on a host without a GPU it lies in the same memory.
    """
    whole = FLOAT * tower_parameters(settings.teacher, list(sizes.dims.values()))
    shard = whole / settings.cluster.num_workers
    # Weights, gradients and moments; stage 1 adds its float32 copy, 2 reduces gradients into shards, 3 has a layer whole while it runs.
    held = {0: 4 * whole, 1: 2 * whole + 4 * shard, 2: 2 * whole + 4 * shard, 3: 5 * shard}
    if settings.teacher.reduction_dtype == "bfloat16":
        held |= {1: 2 * whole + 3 * shard, 2: whole + 4 * shard, 3: 4.5 * shard}
    return int(held[settings.cluster.zero_stage] + whole)


def wants_teacher(settings: Settings, sizes: Sizes) -> bool:
    """Whether the run has a teacher."""
    return settings.distill.use_teacher and (bool(sizes.dims) or not settings.teacher.reads_features)


def candidates_of(settings: Settings, sizes: Sizes) -> int:
    """Items a list of the student, the positive included."""
    return 1 + (settings.distill.num_candidates if wants_teacher(settings, sizes) else 1)


def final_size(settings: Settings, sizes: Sizes) -> int:
    """Columns of the teacher's final vectors."""
    config = settings.teacher
    if config.kind == "vbpr":
        return config.dim * (1 + len(sizes.dims)) + 1
    return config.dim if config.is_baseline else final_dim(config, len(sizes.dims))


def vectors_bytes(settings: Settings, sizes: Sizes) -> int:
    """Of all vectors at one revision of the teacher: final, by modality, and the prompt's."""
    config = settings.teacher
    prompt = config.prompt and not config.is_baseline
    return sizes.nodes * (final_size(settings, sizes) + (len(sizes.dims) + prompt) * config.dim) * FLOAT


def whitening_bytes(settings: Settings, sizes: Sizes) -> int:
    """Matrices that features are decorrelated with, float64 and float32, d_m x d_m."""
    config = settings.teacher
    return (DOUBLE + FLOAT) * sum(dim**2 for dim in sizes.dims.values()) if config.whiten and not config.is_baseline else 0


def standardisation_bytes(sizes: Sizes, dim: int) -> int:
    """Gram matrix, covariance and eigenvectors (d_m x d_m, float64) of the largest modality, and the prompt's sums."""
    return DOUBLE * (6 * sizes.largest**2 + 2 * dim * sizes.width)


def feature_chunk_bytes(rows: int, dim: int) -> int:
    """Rows of a chunk as they are read, and standardised in float64."""
    return min(rows, chunk_rows(dim)) * dim * (3 * FLOAT + DOUBLE)


def reduction_floats(settings: Settings, count: int) -> int:
    """Floats that live at once for an item that is reduced: outputs, the prompt's part, dropout, hidden layers, and their gradients.

    With activation checkpointing one modality's hidden layers live at a time.
    """
    config, towers = settings.teacher, 1 if settings.cluster.checkpoint_activations else count
    return count * 8 * config.dim + towers * 7 * sum(config.hidden)


# The full engine


def full_teacher(settings: Settings, sizes: Sizes) -> Need:
    """A worker with the graph and all tables, and the features of its share of the items.

    Of a baseline it is an upper bound: it has no prompt, and maps features where the method's teacher propagates them too. What only a
    baseline has is added.
    """
    config, workers, count = settings.teacher, settings.cluster.num_workers, len(sizes.dims)
    row, rows = config.dim * FLOAT, -(-sizes.items // workers)
    batch, tables = -(-config.train.batch_size // workers), sizes.nodes * row
    features, reduction = rows * sizes.width * FLOAT, reduction_bytes(settings, sizes)
    tastes = 5 * count * sizes.users * row if config.kind == "vbpr" else 0
    held = {
        "graph": sizes.graph + 3 * sizes.edges * INDEX,
        "features of its shard": features,
        "prompt constants": tables + row * sizes.width + sizes.items * INDEX,
        "whitening": whitening_bytes(settings, sizes),
    }
    learnt = {"ID tables, Adam and best": 5 * tables + tastes, "reduction layers and prompt, Adam and best": reduction}
    graphs, search = item_graph_bytes(settings, sizes)
    # Vectors of a user and of an item that live at once, gradients and the allocator's gaps included.
    of_users = (18 if config.prompt else 9) + 4 * count
    of_items = (28 if config.prompt else 20) + 6 * count
    final = final_size(settings, sizes) // config.dim  # wider ones are made for validation and the artifact alone
    return Need.of(
        "teacher worker",
        "worker",
        {
            "loading": {"graph": sizes.graph + LOADING_ARRAYS * sizes.edges * INDEX},
            "standardisation": {
                **held,
                "float64 features": rows * sizes.largest * (DOUBLE + FLOAT),
                "Gram matrices": standardisation_bytes(sizes, config.dim),
            },
            "neighbour search": {**held, **learnt, "item graphs": graphs, "rows that are compared": search},
            "training": {
                **held,
                **learnt,
                "item graphs": graphs,
                "activations": (of_users * sizes.users + of_items * sizes.items) * row,
                "reduction": rows * reduction_floats(settings, count) * FLOAT,
                "scores of the batch": (3 * (2 + count) + 6) * batch * row,
                "order of the epoch": ORDER_ARRAYS * sizes.edges * INDEX,
            },
            "validation": {**held, **learnt, "vectors": (4 + 2 * count + 2 * final) * tables, "score blocks": SCORE_BYTES},
            "checkpoint": {**held, **learnt, "copies": 4 * tables + reduction},
        },
        "cluster.num_workers, teacher.dim or cluster.engine",
        mapped=rows * sizes.stored,
    )


def item_graph_bytes(settings: Settings, sizes: Sizes) -> tuple[int, int]:
    """Of LATTICE: its item graphs, two a modality, with what their weights' gradients take; and the raw features of all items, gathered
    for the first search, with their copies of unit length and a block of similarities."""
    config = settings.teacher
    if config.kind != "lattice":
        return 0, 0
    edges = config.item_neighbours * sizes.items
    graphs = 2 * len(sizes.dims) * edges * (3 * INDEX + 3 * FLOAT) + len(sizes.dims) * edges * 8 * FLOAT
    return graphs, 4 * sizes.items * max(sizes.largest, config.dim) * FLOAT + sizes.items * sizes.width * FLOAT + SCORE_BYTES


def full_student(settings: Settings, sizes: Sizes) -> Need:
    """A worker with the graph and all tables."""
    config, workers, taught = settings.student, settings.cluster.num_workers, wants_teacher(settings, sizes)
    row, width = config.dim * FLOAT, candidates_of(settings, sizes)
    batch, tables, count = -(-config.train.batch_size // workers), sizes.nodes * row, len(sizes.dims)
    held = {"graph": sizes.graph + 2 * sizes.edges * INDEX, "tables, Adam and best": 5 * tables}
    mapped = 0.0
    if taught:
        vectors = vectors_bytes(settings, sizes)
        if max(sizes.users, sizes.items) > ROWS_A_SHARD:
            held["teacher vectors"] = vectors  # several shards are joined
        else:
            mapped = vectors
        held["labels"] = 2 * label_block(settings, sizes)
    return Need.of(
        "student worker",
        "worker",
        {
            "loading": {"graph": sizes.graph + LOADING_ARRAYS * sizes.edges * INDEX},
            "training": {
                **held,
                "activations": 11 * tables,
                "scores of the batch": batch * (2 * (width + 1) * row + 3 * row + width * (2 + 8 * (1 + count)) * FLOAT),
                "order of the epoch": 0 if taught else ORDER_ARRAYS * sizes.edges * INDEX,
            },
            "validation": {**held, "vectors": 6 * tables, "score blocks": SCORE_BYTES},
            "checkpoint": {**held, "copies": 4 * tables},
        },
        "student.dim, student.train.batch_size or cluster.engine",
        mapped,
    )


def inline_teacher(settings: Settings, sizes: Sizes) -> dict[str, int]:
    """What a resident teacher adds to a student's worker."""
    need = full_teacher(settings, sizes)
    return {f"resident teacher: {name}": size for name, size in need.parts.items() if name != "graph"}


# The sampled engine


def graph_server(settings: Settings, sizes: Sizes, tables: int, dim: int) -> Need:
    """A part's server: the structure, and where the engine samples the rows of the tables of a stage."""
    parts = settings.graph.num_parts
    structure = 2 * (2 * sizes.edges * (2 * INDEX + 13) + sizes.nodes * 8 * INDEX) / parts  # shared, and the private copy it came from
    found = {"structure": structure, "tables": tables * sizes.nodes * dim * FLOAT / parts}
    return Need.of("graph server", "graph server", {"serving": found}, "graph.num_parts")


def teacher_tables(settings: Settings, sizes: Sizes) -> int:
    """Sharded tables of the sampled teacher: IDs with Adam and best, tokens, final vectors, two layers, modalities and prompt."""
    wider = final_size(settings, sizes) // settings.teacher.dim - 1  # final vectors beside the collaborative ones, which then have a table
    return 4 + 1 + 3 + len(sizes.dims) + settings.teacher.prompt + wider + bool(wider)


STUDENT_TABLES = 4 + 3


def block_bytes(settings: Settings, blocks: BlockSizes) -> float:
    """The blocks in hand and in waiting: both directions of every hop with their transposes, ids and exchanges."""
    rows = blocks.users + blocks.items + blocks.further_items
    one = blocks.edges * (2 * INDEX + 2 * FLOAT) + 2 * INDEX * (blocks.asked + rows) + 5 * INDEX * rows
    return (BLOCKS_IN_HAND + settings.sampling.prefetch) * one + 6 * INDEX * (blocks.edges + blocks.seen)


def inference_bytes(sizes: Sizes, dim: int) -> float:
    """A chunk of exact inference: its edges, and the rows that they read."""
    found = 0.0
    for own, other in ((sizes.users, sizes.items), (sizes.items, sizes.users)):
        edges = min(sizes.edges * min(1.0, CHUNK_ROWS / own), CHUNK_EDGES)
        found = max(found, edges * (5 * INDEX + FLOAT) + min(other, edges) * dim * FLOAT + 3 * min(own, CHUNK_ROWS) * dim * FLOAT)
    return found


def validation_bytes(sizes: Sizes, dim: int, workers: int) -> float:
    """A worker's share of the validation users: their vectors, held-out and seen items, and a block of scores."""
    users = min(sizes.users, sizes.held_out) / workers
    return users * dim * FLOAT + 6 * INDEX * sizes.edges * users / sizes.users + SCORE_BYTES if sizes.held_out else 0


def mapped_files(settings: Settings, sizes: Sizes, dim: int) -> float:
    """Files that a worker reads all the time: examples, its part's structure, node numbers, features, and the items it validates with."""
    structure = (2 * sizes.edges * FLOAT + sizes.nodes * INDEX) / settings.graph.num_parts
    examples = sizes.edges * 4 + sizes.users * INDEX + sizes.nodes * INDEX
    return (
        structure
        + examples
        + sizes.items / settings.cluster.num_workers * sizes.stored
        + (sizes.items * dim * FLOAT if sizes.held_out else 0)
    )


def teacher_seeds(settings: Settings) -> Seeds:
    """Of one worker's blocks in the teacher's step, or in one of its micro-batches."""
    batch = -(-settings.teacher.train.batch_size // (settings.cluster.num_workers * settings.cluster.micro_batches))
    return Seeds(batch, batch, batch if settings.teacher.feature_decay else 0)


def student_seeds(settings: Settings, sizes: Sizes) -> Seeds:
    """Of one worker's blocks in the student's step; top-ranked candidates count as uniform ones."""
    batch = -(-settings.student.train.batch_size // settings.cluster.num_workers)
    return Seeds(batch, batch * (candidates_of(settings, sizes) - 1))


def student_hops(settings: Settings) -> int:
    return 0 if settings.student.kind == "mf" else settings.student.layers


def row_widths(settings: Settings, sizes: Sizes) -> tuple[int, int]:
    """d-sized vectors that travel for a user and for an item in the teacher's step."""
    config = settings.teacher
    prompt = int(config.prompt and bool(config.id_prompt_weight or config.prompt_loss_weight))
    return 1 + prompt, 1 + prompt + len(sizes.dims)


def sampled_teacher(settings: Settings, sizes: Sizes, estimate: Callable[[Seeds, list[int]], BlockSizes]) -> dict[str, dict[str, float]]:
    """A worker's moments, for block sizes as estimated."""
    config, workers, count = settings.teacher, settings.cluster.num_workers, len(sizes.dims)
    blocks = estimate(teacher_seeds(settings), settings.sampling.fan_outs_of(num_hops(config)))
    row, items, own = config.dim * FLOAT, blocks.items + blocks.further_items, -(-sizes.items // workers)
    of_user, of_item = row_widths(settings, sizes)
    exchanged = (of_user * blocks.users + of_item * items) * row
    served = min(own, items)
    batch = -(-config.train.batch_size // (workers * settings.cluster.micro_batches))
    held = {
        "reduction layers and prompt, Adam and best": reduction_bytes(settings, sizes),
        "prompt constants": row * sizes.width,
        "whitening": whitening_bytes(settings, sizes),
    }
    chunk = min(own, CHUNK_ROWS)
    return {
        "standardisation": {
            "rows of a chunk": max(feature_chunk_bytes(own, sizes.largest), feature_chunk_bytes(own, sizes.width)),
            "Gram matrices": standardisation_bytes(sizes, config.dim),
        },
        "training": {
            **held,
            "blocks in flight": block_bytes(settings, blocks),
            # Answers with their gradients, and with others what is sent; the ID rows with their propagation and update.
            "rows with gradients": (12 if workers == 1 else 15) * exchanged + 8 * (blocks.users + items) * row,
            "reduction": served * reduction_floats(settings, count) * FLOAT,
            "scores of the batch": (3 * (2 + count) + 6) * batch * row,
        },
        "inference": {
            **held,
            "a chunk": inference_bytes(sizes, config.dim) + chunk * (6 * count + 4) * row,
            "validation": validation_bytes(sizes, final_size(settings, sizes), workers),
        },
    }


def sampled_student(settings: Settings, sizes: Sizes, estimate: Callable[[Seeds, list[int]], BlockSizes]) -> dict[str, dict[str, float]]:
    """A worker's moments, for block sizes as estimated."""
    config, workers, count = settings.student, settings.cluster.num_workers, len(sizes.dims)
    blocks = estimate(student_seeds(settings, sizes), settings.sampling.fan_outs_of(student_hops(settings)))
    row, width, batch = config.dim * FLOAT, candidates_of(settings, sizes), -(-config.train.batch_size // workers)
    rows = (blocks.users + blocks.items) * row
    return {
        "training": {
            "blocks in flight": block_bytes(settings, blocks),
            "rows with gradients": (17 if workers == 1 else 20) * rows,
            "scores of the batch": batch * (2 * (width + 1) * row + 3 * row + width * (2 + 8 * (1 + count)) * FLOAT),
            "labels": 2 * label_block(settings, sizes) if wants_teacher(settings, sizes) else 0,
        },
        "inference": {"a chunk": inference_bytes(sizes, config.dim), "validation": validation_bytes(sizes, config.dim, workers)},
    }


# Both engines


def block_rows(settings: Settings) -> int:
    """Examples in a label block."""
    return max(settings.labels.block_rows, settings.student.train.batch_size)


def label_row(settings: Settings, sizes: Sizes) -> int:
    """Bytes of a labelled example on disk and on the wire."""
    return 4 + (1 + settings.distill.num_candidates) * (4 + 2 + 2 * len(sizes.dims)) + 12


def label_block(settings: Settings, sizes: Sizes) -> int:
    """Bytes of a block of labels."""
    return min(block_rows(settings), sizes.edges) * label_row(settings, sizes)


def labeler(settings: Settings, sizes: Sizes) -> Need:
    """A label process: all train interactions, and a block in the making."""
    dim, count, width = settings.teacher.dim, len(sizes.dims), 1 + settings.distill.num_candidates
    rows = min(block_rows(settings), sizes.edges)
    vectors = vectors_bytes(settings, sizes)
    joined = max(sizes.users, sizes.items) > ROWS_A_SHARD
    held = {
        "train interactions": 3 * sizes.edges * INDEX + sizes.nodes * INDEX,
        "teacher vectors": vectors if joined else 0,
        "top-ranked items": sizes.users * settings.distill.top_depth * INDEX if settings.distill.num_top else 0,
    }
    # Candidate vectors are gathered for every kind of score in turn; the allocator does not fill the gap that the last ones left.
    scored = rows * width * (1.2 * (final_size(settings, sizes) + count * dim) * FLOAT + (2 + 3 * count) * FLOAT + 4 * INDEX)
    moments: dict[str, dict[str, float]] = {
        "loading": {"train interactions": 8 * sizes.edges * INDEX},
        "scoring": {**held, "a block's candidates": scored, "block": 3 * label_block(settings, sizes)},
    }
    return Need.of("labeler", "labeler", moments, "labels.block_rows or distill.num_uniform", 0 if joined else vectors)


def evaluator(settings: Settings, sizes: Sizes, dim: int, model: str) -> Need:
    """An evaluation task: all vectors, whole, in Ray's object store and copied, and the interactions that it masks."""
    vectors = sizes.nodes * dim * FLOAT
    parts = {"vectors": vectors, "object store": vectors, "masks": 8 * sizes.edges * INDEX, "score blocks": SCORE_BYTES}
    return Need.of(f"evaluator ({model})", "evaluator", {"ranking": parts}, f"{model}.dim")
