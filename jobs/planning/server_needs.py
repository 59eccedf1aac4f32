"""Memory of graph servers."""

from ..settings import Settings
from .sizes import Need, Sizes
from .units import FLOAT, INDEX


def graph_server(settings: Settings, sizes: Sizes, floats: int) -> Need:
    """Memory of a part's server: the structure, and where the engine samples the rows of a stage's sharded tables.

    Args:
        settings: Of the run.
        sizes: Of the catalog.
        floats: Numbers in the stage's sharded tables, over all parts; 0 in the full engine.
    """
    parts = settings.graph.num_parts
    structure = 2 * (2 * sizes.edges * (2 * INDEX + 13) + sizes.nodes * 8 * INDEX) / parts  # shared, and the private copy it came from
    parts_held = {"structure": structure, "tables": floats * FLOAT / parts}
    return Need.of("graph server", "graph server", {"serving": parts_held}, "graph.num_parts")
