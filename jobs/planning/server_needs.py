"""Memory of graph servers."""

from ..settings import Settings
from .sizes import Need, Sizes
from .units import FLOAT, INDEX


def graph_server(settings: Settings, sizes: Sizes, tables: int, dim: int) -> Need:
    """Memory of a part's server: the structure, and where the engine samples the rows of a stage's sharded tables.

    Args:
        settings: Of the run.
        sizes: Of the catalog.
        tables: Number of the tables, of a row for every user and item; 0 in the full engine.
        dim: Their columns.
    """
    parts = settings.graph.num_parts
    structure = 2 * (2 * sizes.edges * (2 * INDEX + 13) + sizes.nodes * 8 * INDEX) / parts  # shared, and the private copy it came from
    parts_held = {"structure": structure, "tables": tables * sizes.nodes * dim * FLOAT / parts}
    return Need.of("graph server", "graph server", {"serving": parts_held}, "graph.num_parts")
