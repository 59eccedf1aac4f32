"""Memory of a worker that reads the vectors of a teacher which was trained elsewhere; the same in either engine."""

from ...distributed.artifacts.teacher import ROWS_A_SHARD
from ...graph_store.sources.vector_table import IDS_AT_A_TIME
from ..settings import Settings
from . import kinds
from .sampled_needs import validation_bytes
from .sizes import Need, Sizes
from .units import FLOAT, INDEX, MIB

ID_BYTES = 24  # of a raw id with its offset, and with its place while ids are looked up: the ids themselves are not known here
PIECE_BYTES = 240 * MIB  # that reading holds at its largest moment, with what Arrow keeps of pages, measured


def imported_teacher(settings: Settings, sizes: Sizes) -> Need:
    """Memory of a worker: raw ids while they are looked up, places of the files' rows, and a piece of a file or of a shard; all vectors are
    in scratch files."""
    dims, workers, largest = sizes.imported[settings.teacher.vectors], settings.cluster.num_workers, max(sizes.users, sizes.items)
    columns, places = sum(dims.values()), {"places of the rows": sizes.nodes * (FLOAT + 2 * INDEX)}
    return Need.of(
        "teacher worker",
        "worker",
        {
            "raw ids": {"raw ids": 4 * ID_BYTES * largest + 2 * ID_BYTES * min(largest, IDS_AT_A_TIME), **places},
            "reading": {"a piece of a file": min(PIECE_BYTES, 4 * sizes.nodes * columns * FLOAT), **places},
            "validation": {"validation": validation_bytes(sizes, kinds.final_dim(settings.teacher, sizes), workers), **places},
            "writing": {"a shard": 2 * min(largest, ROWS_A_SHARD) * columns * FLOAT, **places},
        },
        "teacher.vectors",
        mapped=(sizes.users / workers + sizes.items) * columns * FLOAT,
    )
