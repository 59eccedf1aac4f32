"""The plots of an experiment: learning curves, ablations, sweeps, list lengths and item popularity."""

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np

from ...core.storage import join
from ..runs.plots import Draw, color_of, write_plot
from ..runs.report import read_history
from .document import Popularity, Results, Spread, metrics_of
from .models import Models
from .results import lengths_of_curve

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def write_plots(run_dir: str, models: Models, results: Results) -> list[tuple[str, str]]:
    """Writes plots/*.png; returns their names and titles."""
    return [save_plot(run_dir, name, title, draw) for name, title, draw in _plots(models, results)]


def save_plot(run_dir: str, name: str, title: str, draw: Draw, height: float = 4.8) -> tuple[str, str]:
    """Draws one plot to plots/<name>.png in an experiment's folder, as `write_plot` does; returns its file name and title."""
    write_plot(join(run_dir, "plots", f"{name}.png"), title, draw, height)
    return f"{name}.png", title


def _plots(models: Models, results: Results) -> Iterator[tuple[str, str, Draw]]:
    """Yields file name, title and drawing of every plot that there is something to draw for."""
    metric = results["metric"]
    yield "learning", f"Validation {models.recipe.base.evaluation.select_by} by epoch", lambda axes: _learning(axes, models)
    if results["ablations"]:
        yield "ablations", f"Ablations: difference in test {metric}, 95 % interval over users", lambda axes: _ablations(axes, results)
    yield "list-length", "Test recall@K by list length K", lambda axes: _list_length(axes, results)
    title = f"Test items found in lists of {results['popularity']['k']}, by how often train has them"
    yield "popularity", title, lambda axes: _popularity(axes, results["popularity"])
    for name, points in results["sweeps"].items():
        setting = models.recipe.config.sweeps[name].setting

        def draw(axes: "Axes", name: str = name, points: list[str] = points) -> None:
            _sweep(axes, models, results, name, points)

        yield f"sweep-{models[points[0]].folder.partition('=')[0]}", f"{metric} by {setting}", draw


def _histories(models: Models, name: str) -> list[list[dict[str, float]]]:
    """Reads metrics.jsonl of every seed of a model that has one."""
    histories = [read_history(models.cell_url(name, seed), models[name].stage) for seed in models.recipe.config.seeds]
    return [history for history in histories if history]


def _learning(axes: "Axes", models: Models) -> None:
    """Draws every seed thin; thick the mean, as long as all seeds are training."""
    key = f"validation/{models.recipe.base.evaluation.select_by}"
    for number, model in enumerate(models.of_role("model")):
        color, histories = color_of(number), _histories(models, model.name)
        by_epoch: dict[float, list[float]] = {}
        for history in histories:
            points = [(row["epoch"] + 1, row[key]) for row in history if key in row]
            axes.plot(*zip(*points), color=color, linewidth=0.7, alpha=0.45)
            for epoch, value in points:
                by_epoch.setdefault(epoch, []).append(value)
        means = {epoch: np.mean(values) for epoch, values in sorted(by_epoch.items()) if len(values) == len(histories)}
        if not means:  # fitted without epochs: there is no curve
            continue
        marker = "o" if len(means) < 2 else None
        axes.plot(list(means), list(means.values()), color=color, linewidth=2.2, label=model.name, marker=marker)
    axes.set(xlabel="epoch", ylabel=key.removeprefix("validation/"))
    axes.locator_params(axis="x", integer=True)
    axes.legend(frameon=False)


def _error(value: Spread) -> float:
    return value["deviation"] or 0.0


def _ablations(axes: "Axes", results: Results) -> None:
    """Draws a bar for each ablation's difference from its model, with its interval."""
    rows = results["ablations"]
    fulls = list(dict.fromkeys(row["second"] for row in rows))
    rows = sorted(rows, key=lambda row: fulls.index(row["second"]))  # stable: the recipe's order within
    values = np.array([[row["difference"], row["low"], row["high"]] for row in rows])  # [rows, 3]
    errors = np.abs(values[:, 1:] - values[:, :1]).T
    bars = {"ecolor": "0.2", "elinewidth": 1, "capsize": 3}
    colors = [color_of(fulls.index(row["second"])) for row in rows]
    axes.barh(range(len(rows)), values[:, 0], xerr=errors, height=0.6, color=colors, error_kw=bars)
    axes.axvline(0, color="0.2", linewidth=0.8)
    axes.set_yticks(range(len(rows)), [row["first"] if len(fulls) == 1 else f"{row['first']}\n(of {row['second']})" for row in rows])
    axes.set_ylim(max(len(rows), 4) - 0.4, -0.6)
    axes.set_xlabel(f"difference in test {results['metric']} from {fulls[0] if len(fulls) == 1 else 'the whole model'}")


def _line(axes: "Axes", at: list, values: list[Spread], label: str, color: str | None = None) -> None:
    """Draws means as a line, with a band of the standard deviation over seeds."""
    means, errors = np.array([v["mean"] for v in values]), np.array([_error(v) for v in values])
    (line,) = axes.plot(at, means, marker="o", markersize=3.5, label=label, color=color)
    axes.fill_between(at, means - errors, means + errors, color=line.get_color(), alpha=0.15, linewidth=0)


def _list_length(axes: "Axes", results: Results) -> None:
    """Draws a line for each model, with the standard deviation over seeds."""
    lengths = lengths_of_curve(results)
    for name, model in results["models"].items():
        if model["role"] != "model":
            continue
        _line(axes, lengths, [model["test"][f"recall@{k}"] for k in lengths], name)
    axes.set(xlabel="list length K", ylabel="recall@K", xticks=lengths, ylim=(0, None))
    axes.legend(frameon=False, loc="upper left", bbox_to_anchor=(1, 1))


def _popularity(axes: "Axes", popularity: Popularity) -> None:
    """Draws bars by group of items, and in it by model."""
    groups, models = list(popularity["num_pairs"]), popularity["models"]
    width = 0.8 / len(models)
    for number, (name, found) in enumerate(models.items()):
        at = np.arange(len(groups)) + (number - (len(models) - 1) / 2) * width
        means, errors = (np.array([f(found[group]) for group in groups]) for f in (lambda v: v["mean"], _error))
        bars = {"ecolor": "0.2", "elinewidth": 0.8, "capsize": 2}
        axes.bar(at, means, width * 0.92, yerr=[np.minimum(errors, means), errors], label=name, error_kw=bars)
    # Rare items are found a hundred times less often than common ones.
    axes.set_yscale("function", functions=(lambda y: np.sqrt(np.maximum(y, 0)), np.square))
    top = axes.get_ylim()[1]
    ticks = [0, *(y for y in (0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.3, 0.4, 0.6, 0.8, 1) if 0.01 * top < y <= top)]
    axes.set_yticks(ticks, [f"{y:g}" for y in ticks])
    axes.set_xticks(range(len(groups)), [f"{group}\n{popularity['num_pairs'][group]:,} pairs" for group in groups])
    axes.set(xlabel="train interactions of the item, test pairs", ylabel="share found (square-root scale)", ylim=(0, None))
    axes.legend(frameon=False, loc="upper left", bbox_to_anchor=(1, 1))


def _sweep(axes: "Axes", models: Models, results: Results, name: str, points: list[str]) -> None:
    """Draws validation and test over the values, evenly spaced where they are no numbers; the model itself as a line."""
    metric, swept = results["metric"], models[points[0]].of
    assert swept is not None, "a sweep varies a model"
    values: list[Any] = [point[1] for point in (models[name].point for name in points) if point is not None]
    numbers = all(isinstance(v, int | float) and not isinstance(v, bool) for v in values)
    if numbers:
        values, points = (list(ordered) for ordered in zip(*sorted(zip(values, points))))
    at = values if numbers else list(range(len(values)))
    for split, color in (("validation", color_of(1)), ("test", color_of(0))):
        _line(axes, at, [metrics_of(results["models"][point], split)[metric] for point in points], split, color)
        own = metrics_of(results["models"][swept], split)[metric]["mean"]
        axes.axhline(own, color=color, linestyle="--", linewidth=0.8, label=f"{swept}, {split}")
    if numbers and min(values) > 0 and max(values) / min(values) >= 8:
        axes.set_xscale("log")
    axes.set_xticks(at, [str(value) for value in values])
    axes.minorticks_off()
    axes.set(xlabel=models.recipe.config.sweeps[name].setting, ylabel=metric)
    axes.legend(frameon=False)
