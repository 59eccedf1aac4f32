"""Memory of a teacher's worker, in either engine."""

from ...core.config import TeacherConfig
from ...core.ensemble import BLOCK_SCORES, ChoiceSize
from ...core.teacher.ensemble import outside
from ...distributed.engines.sampled.inference import CHUNK_ROWS
from ..settings import Settings
from . import kinds
from .block_sizes import BlockSizes, Estimate, Seeds
from .fitted_needs import fitted_over_shards, fitted_teacher
from .imported_needs import imported_teacher
from .label_needs import histories
from .reduction import feature_chunk_bytes, reduction_bytes, reduction_floats, standardisation_bytes, whitening_bytes
from .sampled_needs import Moments, block_bytes, bounded, inference_bytes, mapped_files, validation_bytes
from .sizes import LOADING_ARRAYS, ORDER_ARRAYS, SCORE_BYTES, VISITED_ARRAYS, Need, Sizes
from .units import DOUBLE, FLOAT, INDEX

ALL_ITEMS = 10**9  # so many uniform draws hit every item of any catalog


def teacher_worker(settings: Settings, sizes: Sizes, blocks: Estimate, most: Estimate) -> Need:
    """Memory of a teacher's worker with a chosen engine.

    Args:
        settings: Of the run, with its engine.
        sizes: Of the catalog.
        blocks, most: Sizes of its neighbour blocks, expected and at most; the full engine does not ask for them.
    """
    if kinds.is_ensemble(settings.teacher):
        needs = [teacher_worker(each, sizes, blocks, most) for each in kinds.settings_of_components(settings)]
        return max([*needs, ensemble(settings, sizes)], key=lambda need: need.total)
    if kinds.is_imported(settings.teacher):
        return imported_teacher(settings, sizes)
    if kinds.is_fitted(settings.teacher):
        return fitted_teacher(settings, sizes) if settings.cluster.engine == "full" else fitted_over_shards(settings, sizes)
    if settings.cluster.engine == "full":
        return full_teacher(settings, sizes)
    expected, largest = (sampled_teacher(settings, sizes, estimate) for estimate in (blocks, most))
    mapped = mapped_files(settings, sizes, kinds.final_dim(settings.teacher, sizes))
    return bounded("teacher worker", expected, largest, "sampling.fan_outs, teacher.train.batch_size or teacher.dim", mapped)


def ensemble(settings: Settings, sizes: Sizes) -> Need:
    """Memory of the first worker while it adds an ensemble's components up: their scores for the users that choose the weights."""
    count = len(settings.teacher.components.keys() - outside(settings.teacher))
    choice = ChoiceSize.of(max(1, min(sizes.users, sizes.held_out)), sizes.items, max(1, count), settings.evaluation.select_by)
    columns = [kinds.final_dim(component, sizes) for component in kinds.components(settings.teacher)]
    by_histories = histories(settings, sizes)
    parts = {
        "scores of the components": choice.bytes * 3 // 2,  # a half of the users has a copy while it chooses
        "blocks of scores": count * BLOCK_SCORES * FLOAT,
        "vectors beside histories": sizes.items * max(columns, default=0) * FLOAT if by_histories else 0,
        **by_histories,
        "train items of these users": 4 * sizes.edges * min(1.0, choice.users / max(1, sizes.users)) * INDEX,
        "users and items": (2 * sizes.users + sizes.items) * INDEX,
        "held-out items": 8 * sizes.held_out * INDEX,
        "score blocks": SCORE_BYTES,
    }
    mapped = 2 * sizes.items * sum(columns) * FLOAT  # each component's own, and one whose scores are in common units
    return Need.of("teacher worker", "worker", {"choice of the weights": parts}, "teacher.components", mapped)


def full_teacher(settings: Settings, sizes: Sizes) -> Need:
    """Memory of a worker of the full engine: the graph and all tables, and the features of its share of the items.

    Of a baseline it is an upper bound: it has no prompt, and maps features where the method's teacher propagates them too. What only a
    baseline has is added.
    """
    config, workers, count = settings.teacher, settings.cluster.num_workers, len(sizes.dims)
    row, rows = config.dim * FLOAT, -(-sizes.items // workers)
    batch, tables = -(-config.train.batch_size // workers), sizes.nodes * row
    features, reduction = rows * sizes.width * FLOAT, reduction_bytes(settings, sizes)
    tastes = kinds.own_learnt_bytes(config, count, sizes.users, sizes.items)
    held = {
        "graph": sizes.graph + 3 * sizes.edges * INDEX,
        "features of its shard": features,
        "prompt constants": tables + row * sizes.width + sizes.items * INDEX,
        "whitening": whitening_bytes(settings, sizes),
    }
    learnt = {"ID tables, Adam and best": 5 * tables + tastes, "reduction layers and prompt, Adam and best": reduction}
    graphs, search = kinds.item_graph_bytes(config, count, sizes.items), search_bytes(settings, sizes)
    # Vectors of a user and of an item that live at once, gradients and the allocator's gaps included.
    of_users = (18 if config.prompt else 9) + 4 * count
    of_items = (28 if config.prompt else 20) + 6 * count
    final = kinds.final_dim(config, sizes) // config.dim  # wider ones are made for validation and the artifact alone
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
                "scores of the batch": scores_bytes(config, count, batch),
                "softmax": softmax_bytes(settings, sizes, batch),
                "order of the epoch": ORDER_ARRAYS * sizes.edges * INDEX,
            },
            "validation": {**held, **learnt, "vectors": (4 + 2 * count + 2 * final) * tables, "score blocks": SCORE_BYTES},
            "checkpoint": {**held, **learnt, "copies": 4 * tables + reduction},
        },
        "cluster.num_workers, teacher.dim or cluster.engine",
        mapped=rows * sizes.stored,
    )


def search_bytes(settings: Settings, sizes: Sizes) -> int:
    """Bytes of the search for an item's neighbours: raw features of all items, copies of unit length and a block of similarities."""
    if not kinds.searches_neighbours(settings.teacher):
        return 0
    return 4 * sizes.items * max(sizes.largest, settings.teacher.dim) * FLOAT + sizes.items * sizes.width * FLOAT + SCORE_BYTES


def compared_items(settings: Settings, sizes: Sizes) -> int:
    """Counts the items that a step's positives are compared with by `teacher.loss=softmax`; 0 with other losses."""
    return min(settings.teacher.softmax_items, sizes.items) if settings.teacher.loss == "softmax" else 0


def scores_bytes(config: TeacherConfig, num_modalities: int, batch: int) -> int:
    """Bytes of the loss on pairs for a worker's share of a batch: rows that a gradient is summed from, and rows of the L2 loss.

    Item vectors are gathered only where a modality's loss compares other vectors than those of the tables.
    """
    compares_others = config.leave_one_out or config.feature_temperature is not None
    rows = 2 + 6 + (3 * num_modalities if compares_others else 0)
    return rows * batch * config.dim * FLOAT


def softmax_bytes(settings: Settings, sizes: Sizes, batch: int) -> int:
    """Bytes of the softmax loss for a worker's share of a batch: scores of its users, their gradients and what is between, and vectors.

    Of whole histories a batch holds few users: their number is counted at twice what the mean history makes it.
    """
    compared, dim = compared_items(settings, sizes), settings.teacher.dim
    users = min(batch, sizes.users)
    if settings.teacher.examples == "histories":
        users = min(users, 2 * (batch * sizes.users // max(1, sizes.edges) + 1))
    further = batch if 0 < compared < sizes.items else 0
    return 4 * users * compared * FLOAT + 4 * (compared + users + further) * dim * FLOAT if compared else 0


def inline_teacher(settings: Settings, sizes: Sizes) -> dict[str, int]:
    """Bytes that a resident teacher adds to a student's worker, by purpose."""
    need = full_teacher(settings, sizes)
    return {f"resident teacher: {name}": size for name, size in need.parts.items() if name != "graph"}


def teacher_seeds(settings: Settings, sizes: Sizes) -> Seeds:
    """What one worker's blocks start from in the teacher's step, or in one of its micro-batches."""
    batch = -(-settings.teacher.train.batch_size // (settings.cluster.num_workers * settings.cluster.micro_batches))
    further = batch if settings.teacher.feature_decay else 0
    compared = compared_items(settings, sizes)
    draws = compared if compared < sizes.items else ALL_ITEMS
    return Seeds(batch, batch + draws, further)


def row_widths(settings: Settings, sizes: Sizes) -> tuple[int, int]:
    """Counts the d-sized vectors that travel for a user and for an item in the teacher's step."""
    config = settings.teacher
    prompt = int(config.prompt and bool(config.id_prompt_weight or config.prompt_loss_weight))
    return 1 + prompt, 1 + prompt + len(sizes.dims)


def rows_with_gradients(settings: Settings, sizes: Sizes, blocks: BlockSizes, is_learnt: bool = True) -> float:
    """Bytes of the rows of a step: answers with their gradients, with other workers what is sent, and the ID rows with their propagation.

    Args:
        settings: Of the run.
        sizes: Of the catalog.
        blocks: The worker's.
        is_learnt: Whether ID rows are learnt, which have gradients and an update then; frozen ones were measured in prompt-tuning.
    """
    row, alone = settings.teacher.dim * FLOAT, settings.cluster.num_workers == 1
    of_user, of_item = row_widths(settings, sizes)
    items = blocks.items + blocks.further_items
    exchanged, rows = (of_user * blocks.users + of_item * items) * row, (blocks.users + items) * row
    copies, updates = (9 if alone else 15, 8) if is_learnt else (4 if alone else 10, 2)
    return copies * exchanged + updates * rows


def sampled_teacher(settings: Settings, sizes: Sizes, estimate: Estimate, seeds: Seeds | None = None) -> Moments:
    """Bytes of a worker of the sampled engine at several moments, for block sizes as estimated from seeds, by default `teacher_seeds`."""
    config, workers, count = settings.teacher, settings.cluster.num_workers, len(sizes.dims)
    blocks = estimate(seeds or teacher_seeds(settings, sizes), settings.sampling.fan_outs_of(kinds.num_hops(config)))
    row, items, own = config.dim * FLOAT, blocks.items + blocks.further_items, -(-sizes.items // workers)
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
            "rows with gradients": rows_with_gradients(settings, sizes, blocks),
            "reduction": served * reduction_floats(settings, count) * FLOAT,
            "scores of the batch": scores_bytes(config, count, batch),
            "softmax": softmax_bytes(settings, sizes, batch),
            "order of the users": VISITED_ARRAYS[config.examples] * sizes.users * INDEX,
        },
        "inference": {
            **held,
            "a chunk": inference_bytes(sizes, config.dim) + chunk * (6 * count + 4) * row,
            "validation": validation_bytes(sizes, kinds.final_dim(config, sizes), workers),
        },
    }


def teacher_floats(settings: Settings, sizes: Sizes) -> int:
    """Counts the numbers in the sharded tables of the sampled teacher: of one that is fitted its blocks; of one that is read from files
    none; of another one tables of IDs, Adam and best, tokens, final vectors, two layers, modalities and prompt; of an ensemble those of
    its largest component."""
    if kinds.is_ensemble(settings.teacher):
        return max((teacher_floats(each, sizes) for each in kinds.settings_of_components(settings)), default=0)
    if kinds.is_imported(settings.teacher):
        return 0
    if kinds.is_fitted(settings.teacher):
        of_users, of_items = kinds.block_columns(settings.teacher, sizes)
        return sizes.users * of_users + sizes.items * of_items
    wider = (
        kinds.final_dim(settings.teacher, sizes) // settings.teacher.dim - 1
    )  # final vectors beside the collaborative ones, which then have a table
    tables = 4 + 1 + 3 + len(sizes.dims) + settings.teacher.prompt + wider + bool(wider)
    return tables * sizes.nodes * settings.teacher.dim
