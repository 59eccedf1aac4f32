"""The plots of an inspection, drawn from its facts alone."""

from collections.abc import Iterator
from typing import TYPE_CHECKING

from ...core.storage import join
from ..runs.plots import Draw, write_plot
from .degrees import HEAVIEST
from .facts import CatalogFacts, ValidationFacts
from .names import ranking_title

if TYPE_CHECKING:
    from matplotlib.axes import Axes

FOLDER = "inspection"


def write_plots(run_dir: str, facts: CatalogFacts) -> dict[str, tuple[str, str]]:
    """Writes inspection/*.png; returns the file, relative to the run's folder, and the title of every plot, by its name."""
    written = {}
    for name, title, draw in _plots(facts):
        write_plot(join(run_dir, FOLDER, f"{name}.png"), title, draw)
        written[name] = f"{FOLDER}/{name}.png", title
    return written


def _plots(facts: CatalogFacts) -> Iterator[tuple[str, str, Draw]]:
    """Yields file name, title and drawing of every plot that there is something to draw for."""
    yield "interactions", "Train interactions that the heaviest users and items have", lambda axes: _heaviest(axes, facts)
    if len(facts.spectrum.values) > 1:
        yield "spectrum", "Singular values of the normalised train graph", lambda axes: _spectrum(axes, facts)
    validation = facts.validation
    if validation is not None:
        yield (
            "rankings",
            f"Validation Recall@{validation.k} without training",
            lambda axes: _rankings(axes, validation),
        )
        title = "Validation items by their train interactions, and how many co-occurrence finds"
        yield "groups", title, lambda axes: _groups(axes, validation)


def _heaviest(axes: "Axes", facts: CatalogFacts) -> None:
    """Draws the share of the interactions over the share of users or items, the heaviest first."""
    at = [100 * share for share in (*HEAVIEST, 1.0)]
    for name, spread, color in (("users", facts.users, "C0"), ("items", facts.items, "C1")):
        axes.plot(at, [*(100 * share for share in spread.heaviest_shares), 100], marker="o", markersize=3.5, label=name, color=color)
    axes.plot(at, at, color="0.6", linewidth=0.8, linestyle="--", label="all alike")
    axes.set_xscale("log")
    axes.set_xticks(at, [f"{share:g}" for share in at])
    axes.minorticks_off()
    axes.set(xlabel="heaviest users or items, % (logarithmic scale)", ylabel="their share of the train interactions, %", ylim=(0, 102))
    axes.legend(frameon=False)


def _spectrum(axes: "Axes", facts: CatalogFacts) -> None:
    """Draws the singular values by rank, and the share of the energy that the leading ones hold."""
    values = facts.spectrum.values
    ranks = range(1, len(values) + 1)
    axes.plot(ranks, values, color="C0", label="singular value")
    axes.plot(ranks, [facts.spectrum.share(rank) for rank in ranks], color="C1", label="share of Σ σ² up to here")
    axes.set(xlabel="rank", ylim=(0, 1.03), xlim=(0, len(values) + 1))
    axes.legend(frameon=False)


def _rankings(axes: "Axes", validation: ValidationFacts) -> None:
    """Draws a bar for each score, the best at the top, and chance as a line."""
    ordered = sorted(validation.rankings.items(), key=lambda one: -one[1].recall)
    colors = ["C1" if ":" in name else "C0" for name, _ in ordered]
    bars = {"ecolor": "0.2", "elinewidth": 1, "capsize": 3}
    recalls, errors = [ranking.recall for _, ranking in ordered], [ranking.error for _, ranking in ordered]
    axes.barh(range(len(ordered)), recalls, xerr=errors, height=0.62, color=colors, error_kw=bars)
    axes.axvline(validation.chance, color="0.2", linewidth=0.8, linestyle="--", label=f"chance: {validation.chance:.4f}")
    axes.set_yticks(range(len(ordered)), [ranking_title(name) for name, _ in ordered])
    axes.set(ylim=(len(ordered) - 0.4, -0.6), xlim=(0, None), xlabel="± standard error (blue: interactions, orange: features)")
    axes.legend(frameon=False, loc="lower right")


def _groups(axes: "Axes", validation: ValidationFacts) -> None:
    """Draws for each group of items its share of the validation interactions, and the share of these that is found."""
    groups, width = validation.groups, 0.4
    for number, (label, values) in enumerate(
        (("of all validation interactions", [g.share for g in groups]), ("found among these", [g.recall for g in groups]))
    ):
        bars = axes.bar([at + (number - 0.5) * width for at in range(len(groups))], values, width * 0.94, label=label)
        axes.bar_label(bars, [f"{100 * value:.0f} %" if value >= 0.1 else f"{100 * value:.1f} %" for value in values], fontsize=8)
    axes.set_xticks(range(len(groups)), [group.title for group in groups])
    axes.set(xlabel="train interactions of the item with users that are not busy", ylabel="share", ylim=(0, None))
    axes.legend(frameon=False)
