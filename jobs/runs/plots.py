"""Draws one plot to a PNG file, for every page that has pictures."""

import io
from collections.abc import Callable
from typing import TYPE_CHECKING

from ...core.storage import write_bytes

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Draw = Callable[["Axes"], None]


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
    draw(axes)
    axes.set_title(title)
    axes.spines[["top", "right"]].set_visible(False)
    figure.tight_layout()
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=120)
    plt.close(figure)
    write_bytes(url, buffer.getvalue())
