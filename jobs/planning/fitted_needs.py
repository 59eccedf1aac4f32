"""Memory of a worker that fits a teacher in closed form, in either engine."""

from ...core.linear.factors import width_of
from ...distributed.engines.sampled.inference import CHUNK_ROWS
from ..settings import Settings
from . import kinds
from .sampled_needs import inference_bytes, mapped_files, validation_bytes
from .sizes import LOADING_ARRAYS, ORDER_ARRAYS, SCORE_BYTES, Need, Sizes
from .units import DOUBLE, FLOAT, INDEX


def fitted_teacher(settings: Settings, sizes: Sizes) -> Need:
    """Memory of the first worker, which fits: graph, features of all items, and what the kind says of itself; others need less."""
    config, rows = settings.teacher, -(-sizes.items // settings.cluster.num_workers)
    width, largest = sum(sizes.read.values()), max(sizes.read.values(), default=0)
    vectors = sizes.nodes * kinds.final_dim(config, sizes) * FLOAT + kinds.similarity_bytes(config, sizes)
    held = {
        "graph": sizes.graph + 3 * sizes.edges * INDEX,
        "features of its shard": rows * width * FLOAT,
        "features of all items": sizes.items * width * FLOAT,
    }
    return Need.of(
        "teacher worker",
        "worker",
        {
            "loading": {"graph": sizes.graph + LOADING_ARRAYS * sizes.edges * INDEX},
            "standardisation": {
                **held,
                "float64 features": rows * largest * (DOUBLE + FLOAT),
                "Gram matrices": 6 * DOUBLE * largest**2,
            },
            "fitting": {**held, "fitting": kinds.fitting_bytes(config, sizes)},
            "validation": {**held, "fitting": kinds.fitting_bytes(config, sizes) / 2, "vectors": 2 * vectors, "score blocks": SCORE_BYTES},
            "order of the epoch": {**held, "vectors": vectors, "order of the epoch": ORDER_ARRAYS * sizes.edges * INDEX},
        },
        "teacher.kind, teacher.linear.rank, teacher.linear.neighbours or teacher.linear.content_weight",
        mapped=rows * sizes.stored,
    )


def fitted_over_shards(settings: Settings, sizes: Sizes) -> Need:
    """Memory of a worker that fits over sharded rows: a chunk of them and matrices of columns by columns; it grows with no catalog."""
    rank = kinds.final_dim(settings.teacher, sizes)
    width = width_of(rank, sizes.items)
    chunk = 5 * min(max(sizes.users, sizes.items), CHUNK_ROWS) * width * DOUBLE  # sources, products and the sum of a chunk
    return Need.of(
        "teacher worker",
        "worker",
        {
            "fitting": {"a chunk": inference_bytes(sizes, width) + chunk, "Gram matrices": 6 * DOUBLE * width**2},
            "validation": {"validation": validation_bytes(sizes, rank, settings.cluster.num_workers)},
        },
        "teacher.linear.rank",
        mapped=mapped_files(settings, sizes, rank),
    )
