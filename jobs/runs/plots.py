"""Draws one plot to a PNG file, for every page that has pictures."""

import io
from collections.abc import Callable
from typing import TYPE_CHECKING

from ...core.storage import write_bytes

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Draw = Callable[["Axes"], None]
# Twenty colours, so that experiments with more than ten models repeat none: matplotlib's ten, then their light shades.
COLORS = (
    *("#1f77b4", "#ff7f0e", "#2ca02c", "#d62728", "#9467bd", "#8c564b", "#e377c2", "#7f7f7f", "#bcbd22", "#17becf"),
    *("#aec7e8", "#ffbb78", "#98df8a", "#ff9896", "#c5b0d5", "#c49c94", "#f7b6d2", "#c7c7c7", "#dbdb8d", "#9edae5"),
)


def color_of(number: int) -> str:
    """Returns the colour of a plot's n-th series, from 0; those of more than twenty repeat."""
    return COLORS[number % len(COLORS)]


def write_plot(url: str, title: str, draw: Draw, height: float = 4.8) -> None:
    """Draws a plot and writes it.

    Args:
        url: Of the file, a PNG.
        title: Of the plot.
        draw: Draws on the axes.
        height: Of the figure, inches; it is 8 wide.
    """
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(8, height))
    axes.set_prop_cycle(color=COLORS)
    draw(axes)
    axes.set_title(title)
    axes.spines[["top", "right"]].set_visible(False)
    figure.tight_layout()
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=120)
    plt.close(figure)
    write_bytes(url, buffer.getvalue())
