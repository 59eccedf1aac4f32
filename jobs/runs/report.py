"""The table and the plots of a run's report."""

import io
import json
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from ...core.storage import JsonObject, exists, join, read_bytes, write_bytes
from ...distributed.loop.stage import stage_url

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def read_history(run_dir: str, stage: str) -> list[dict[str, float]]:
    """Reads the rows of metrics.jsonl of the teacher's or the student's training; none where it did not run."""
    url = join(stage_url(run_dir, stage), "metrics.jsonl")
    if not exists(url):
        return []
    return [json.loads(line) for line in read_bytes(url).decode().splitlines()]


def rounds_in_words(history: Sequence[Mapping[str, float]], best_epoch: int) -> str | None:
    """Says which revision of the prompt a student learnt from, and in which epochs; None where there was a single one.

    Args:
        history: The rows of the student's metrics.jsonl.
        best_epoch: The epoch that was chosen; -1 for the start.
    """
    epochs: dict[int, list[int]] = {}
    for row in history:
        epochs.setdefault(int(row.get("revision", 0)), []).append(int(row["epoch"]))
    if len(epochs) < 2:
        return None
    parts = [f"revision {revision} of the prompt in epochs {own[0]} to {own[-1]}" for revision, own in epochs.items()]
    chosen = next((revision for revision, own in epochs.items() if best_epoch in own), None)
    chosen_in_words = "the start was the best" if chosen is None else f"the chosen epoch, {best_epoch}, learnt from revision {chosen}"
    return f"The student learnt in {len(epochs)} rounds, from {', from '.join(parts)}; {chosen_in_words}."


def table(results: JsonObject, cutoffs: list[int]) -> str:
    """Sets teacher, student and, where its item vectors are others, the bundle side by side, as Markdown: metrics, sizes and ratios.

    Args:
        results: What results.json holds.
        cutoffs: Lengths of the lists.
    """
    models = [name for name in ("teacher", "student", "bundle") if results.get(name) is not None]
    lines = ["| | " + " | ".join(models) + " |", "|---|" + "---:|" * len(models)]
    for split in ("validation", "test"):
        if not results[models[0]].get(split):
            continue
        for k in cutoffs:
            for metric in ("recall", "ndcg"):
                values = [f"{results[m][split][f'{metric}@{k}']:.4f}" for m in models]
                lines.append(f"| {split} {metric}@{k} | " + " | ".join(values) + " |")
    bundle = results.get("bundle")
    for name, key in (("trained parameters", "num_parameters"), ("bytes to serve", "serving_bytes")):
        values = [f"{results[m][key]:,}" if m != "bundle" else "" for m in models]
        lines.append(f"| {name} | " + " | ".join(values) + " |")
    student, rest = results["student"], " |" if bundle is not None else ""
    for name, share in (student.get("agreement") or {}).items():
        lines.append(f"| {name} with the teacher | | {share:.1%} |{rest}")
    if student.get("parameter_ratio") is not None:
        lines.append(f"| parameters, student / teacher | | {student['parameter_ratio']:.1%} |{rest}")
        lines.append(f"| bytes to serve, student / teacher | | {student['serving_ratio']:.1%} |{rest}")
    if bundle is not None:
        lines += [
            "",
            f"The bundle ranks {bundle['num_mapped']:,} of the {bundle['num_untouched']:,} items without train interactions by "
            "the map's vectors of their features, and all other items as the student does.",
        ]
    return "\n".join(lines)


def component_table(components: JsonObject, metric: str) -> str:
    """Shows what each component of an ensemble brings, as Markdown; see `core.ensemble.contributions`.

    Args:
        components: Of the teacher's manifest.
        metric: The validation metric that chose the weights.
    """
    lines = [
        f"What each teacher brings, on validation ({metric}). *Users* are thirds by their train items, from the fewest on, and *items* "
        "thirds of the held-out items by popularity, from the least on: what the ensemble has more there with the component.",
        "",
        "| component | weight | alone | the others without it | users: few, middle, many | items: tail, middle, head |",
        "|---|---:|---:|---:|---:|---:|",
    ]
    for name, facts in sorted(components.items(), key=lambda pair: -pair[1]["weight"]):
        gains = [" ".join(f"{gain:+.4f}" for gain in facts.get(key, [])) for key in ("gain_by_users", "gain_by_items")]
        without = f"{facts['without']:.4f}" if "without" in facts else ""
        lines.append(f"| {name} | {facts['weight']:.2f} | {facts['alone']:.4f} | {without} | {gains[0]} | {gains[1]} |")
    return "\n".join(lines)


def cold_table(results: JsonObject, cutoffs: list[int]) -> list[str]:
    """Lists the models that rank cold items, as a Markdown table with a sentence before it; nothing for a run without cold items.

    Args:
        results: What results.json holds.
        cutoffs: Lengths of the lists; those beyond the number of cold items are left out.
    """
    cold = results.get("cold")
    if cold is None:
        return []
    columns = [f"{metric}@{k}" for k in cutoffs if k <= cold["num_items"] for metric in ("recall", "ndcg")]
    said = f"Cold items, ranked among themselves ({cold['num_items']:,} items, {cold['num_users']:,} users who have train interactions):"
    if not columns:
        return [f"{said} fewer than any of evaluation.cutoffs={cutoffs}, so nothing is measured."]
    lines = ["| cold | " + " | ".join(columns) + " |", "|---|" + "---:|" * len(columns)]
    rows = cold["rows"]
    for name in [*(first for first in ("map", "teacher") if first in rows), *sorted(set(rows) - {"map", "teacher", "random"}), "random"]:
        metrics = rows[name]
        lines.append(f"| {name} | " + " | ".join(f"{metrics[column]:.4f}" for column in columns) + " |")
    return [said, "\n".join(lines)]


def write_plots(run_dir: str, select_by: str) -> list[str]:
    """Draws the learning curves of teacher and student, as far as they ran, to PNG files below plots/; returns their URLs."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    urls = []
    for stage in ("teacher", "student"):
        history = read_history(run_dir, stage)
        if not history:
            continue
        figure, axes = plt.subplots(1, 2, figsize=(11, 4))
        _plot_losses(axes[0], history, stage)
        _plot_metric(axes[1], history, select_by)
        figure.tight_layout()
        buffer = io.BytesIO()
        figure.savefig(buffer, format="png", dpi=110)
        plt.close(figure)
        urls.append(join(run_dir, "plots", f"{stage}.png"))
        write_bytes(urls[-1], buffer.getvalue())
    return urls


def _plot_losses(axes: "Axes", history: list[dict[str, float]], stage: str) -> None:
    epochs = [row["epoch"] for row in history]
    for name in sorted(key for key in history[0] if key.startswith("loss/")):
        axes.plot(epochs, [max(row[name], 1e-12) for row in history], label=name.removeprefix("loss/"))
    axes.plot(epochs, [row["loss"] for row in history], color="black", linewidth=2, label="total")
    axes.set(yscale="log", xlabel="epoch", ylabel="loss", title=f"{stage}: loss terms with their weights")
    axes.legend(fontsize=8)


def _plot_metric(axes: "Axes", history: list[dict[str, float]], select_by: str) -> None:
    rows = [row for row in history if f"validation/{select_by}" in row]
    axes.set(xlabel="epoch", title=f"validation {select_by}")
    if not rows:
        axes.text(0.5, 0.5, "no validation split", ha="center", va="center", transform=axes.transAxes)
        return
    values = [row[f"validation/{select_by}"] for row in rows]
    axes.plot([row["epoch"] for row in rows], values)
    best = max(range(len(rows)), key=values.__getitem__)
    axes.axvline(rows[best]["epoch"], linestyle="--", color="grey", label=f"epoch {rows[best]['epoch']}: {values[best]:.4f}")
    axes.legend()
