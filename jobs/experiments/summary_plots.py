"""The plots of an experiment over several catalogs: models side by side, paired differences, and what time buys."""

from typing import TYPE_CHECKING

from ..runs.plots import color_of
from .plots import save_plot
from .summary import Summary

if TYPE_CHECKING:
    from matplotlib.axes import Axes

ROW_INCHES = 0.24
MARKERS = "osD^vP*X<>"


def write_summary_plots(run_dir: str, summary: Summary) -> list[tuple[str, str]]:
    """Writes plots/*.png; returns their names and titles."""
    metric, rows = summary["metric"], len(summary["comparisons"])
    written = [save_plot(run_dir, "models", f"Test {metric} as a share of the catalog's best", lambda axes: _models(axes, summary))]
    if rows:
        title = f"Paired differences in test {metric}, 95 % interval over users"
        written.append(
            save_plot(run_dir, "differences", title, lambda axes: _differences(axes, summary), max(3.0, 1.4 + ROW_INCHES * rows))
        )
    title = f"Test {metric} as a share of the catalog's best, by time to train"
    written.append(save_plot(run_dir, "cost", title, lambda axes: _cost(axes, summary)))
    return written


def _best(summary: Summary) -> dict[str, float]:
    """Finds the best mean test metric of each catalog; 1 where all are 0."""
    metric, models = summary["metric"], summary["models"].values()
    return {c: max(m["catalogs"][c]["test"][metric]["mean"] for m in models if c in m["catalogs"]) or 1.0 for c in summary["catalogs"]}


def _models(axes: "Axes", summary: Summary) -> None:
    """Draws a point for each model on each catalog, with the standard deviation over seeds."""
    metric, best, catalogs = summary["metric"], _best(summary), list(summary["catalogs"])
    width = 0.8 / len(summary["models"])
    for number, (name, model) in enumerate(summary["models"].items()):
        on = [
            (at, catalog, model["catalogs"][catalog]["test"][metric]) for at, catalog in enumerate(catalogs) if catalog in model["catalogs"]
        ]
        at = [place + (number - (len(summary["models"]) - 1) / 2) * width for place, _, _ in on]
        means, errors = ([figure(v) / best[c] for _, c, v in on] for figure in (lambda v: v["mean"], lambda v: v["deviation"] or 0.0))
        axes.errorbar(at, means, errors, fmt=MARKERS[number % len(MARKERS)], color=color_of(number), capsize=3, label=name)
    for place in range(1, len(catalogs)):
        axes.axvline(place - 0.5, color="0.9", linewidth=1)
    axes.axhline(1, color="0.6", linewidth=0.8, linestyle="--")
    axes.set_xticks(range(len(catalogs)), [f"{name}\nbest {best[name]:.4f}" for name in catalogs])
    axes.set(xlim=(-0.5, len(catalogs) - 0.5), ylabel=f"{metric} / best {metric}")
    axes.legend(frameon=False, loc="upper left", bbox_to_anchor=(1, 1))


def _differences(axes: "Axes", summary: Summary) -> None:
    """Draws every paired difference as a share of its reference's metric, the rows of a catalog in one colour."""
    metric, catalogs, rows = summary["metric"], list(summary["catalogs"]), summary["comparisons"]
    for at, row in enumerate(rows):
        own = summary["models"][row["first"]]["catalogs"][row["catalog"]]["test"][metric]["mean"] or 1.0
        value, low, high = (100 * row[key] / own for key in ("difference", "low", "high"))
        color = color_of(catalogs.index(row["catalog"]))
        first = row["catalog"] not in [r["catalog"] for r in rows[:at]]
        label = row["catalog"] if first else None
        axes.errorbar(value, at, xerr=[[value - low], [high - value]], fmt="o", color=color, capsize=2, markersize=4, label=label)
    axes.axvline(0, color="0.2", linewidth=0.8)
    axes.set_yticks(range(len(rows)), [f"{row['first']} - {row['second']}" for row in rows])
    axes.set_ylim(len(rows) - 0.4, -0.6)
    axes.set_xlabel(f"difference, % of the first one's {metric}")
    axes.legend(frameon=False, loc="upper left", bbox_to_anchor=(1, 1))


def _cost(axes: "Axes", summary: Summary) -> None:
    """Draws a point for each model (colour) on each catalog (marker): what share of the best it has, and how long it trains."""
    from matplotlib.lines import Line2D
    from matplotlib.ticker import LogLocator

    metric, best, catalogs = summary["metric"], _best(summary), list(summary["catalogs"])
    for number, model in enumerate(summary["models"].values()):
        for catalog, on in model["catalogs"].items():
            marker = MARKERS[catalogs.index(catalog) % len(MARKERS)]
            axes.scatter(
                max(on["seconds"]["mean"], 0.1), on["test"][metric]["mean"] / best[catalog], color=color_of(number), marker=marker, s=48
            )
    axes.axhline(1, color="0.6", linewidth=0.8, linestyle="--")
    axes.set(xscale="log", xlabel="seconds to train", ylabel=f"{metric} / best {metric}")
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.xaxis.set_major_formatter(lambda seconds, _: f"{seconds:g}")
    axes.minorticks_off()
    handles = [Line2D([], [], color=color_of(number), linewidth=5, label=name) for number, name in enumerate(summary["models"])]
    handles += [
        Line2D([], [], color="0.3", linestyle="", marker=MARKERS[at % len(MARKERS)], label=name) for at, name in enumerate(catalogs)
    ]
    axes.legend(handles=handles, frameon=False, loc="upper left", bbox_to_anchor=(1, 1))
