"""Memory of the command that exports a bundle."""

from ...core.features import chunk_rows
from ...core.new_items.fit import MOST_AXES
from ...graph_store.dataset_writer import FILE_ROWS, feature_chunk_rows
from ..runs.new_items import FIT_BYTES
from ..settings import Settings
from .label_needs import rows_bytes
from .sizes import SCORE_BYTES, Need, Sizes
from .units import DOUBLE, FLOAT, INDEX, MIB

ID_BYTES, MANY_IDS = 220 * MIB, 1 << 20  # pieces of raw ids with their hashes, and Parquet's buffers, measured with 10^6 and 10^7 users
FOLD_BYTES = 32 * MIB  # users and items that rank a fold, and the sums of all folds
PIECES_OF_FEATURES = 2.5  # of a file of features that are in memory at once while it is read: Parquet's, and the rows
DOUBLE_ARRAYS = 4  # of a chunk of rows in float64, while sums are taken, measured
TARGETS = 2 * FLOAT + 2 * DOUBLE  # of each fitted item and column: as it is, in double, and predicted


def exporter(settings: Settings, sizes: Sizes) -> Need:
    """Memory of `export`: it fits the map of new items on features in memory; vectors, train items and raw ids are mapped or streamed.

    Args:
        settings: Of the run.
        sizes: Of the catalog.
    """
    moments: dict[str, dict[str, float]] = {
        "writing raw ids": {"pieces of ids": ID_BYTES * min(1.0, max(sizes.users, sizes.items) / MANY_IDS)}
    }
    if sizes.features:
        fitted = min(sizes.items, FIT_BYTES // (FLOAT * sum(sizes.features.values())))
        wide = [dim for dim in sizes.features.values() if dim > MOST_AXES]
        columns = sum(min(dim, MOST_AXES) for dim in sizes.features.values())
        widest = max([columns, *wide])
        moments["fitting the map of new items"] = {
            "feature rows": fitted * sizes.feature_bytes,
            "encoded rows": fitted * (columns + max(wide, default=0)) * FLOAT,
            "pieces of feature files": PIECES_OF_FEATURES * max(_bytes_of_piece(dim, sizes.items) for dim in sizes.features.values()),
            "score blocks": SCORE_BYTES,
            "rows in double": DOUBLE_ARRAYS * min(fitted, chunk_rows(widest)) * widest * DOUBLE,
            "items' vectors": fitted * settings.student.dim * TARGETS,
            "items' and users' numbers": (3 * sizes.items + 2 * sizes.users) * INDEX,
            "folds": FOLD_BYTES,
        }
    return Need.of("exporter", "driver", moments, "export on a larger host", sizes.nodes * settings.student.dim * FLOAT + rows_bytes(sizes))


def _bytes_of_piece(dim: int, num_items: int) -> int:
    """Bytes of the rows that a file of features has in one piece, as float32."""
    return min(feature_chunk_rows(dim * FLOAT), FILE_ROWS, num_items) * dim * FLOAT
