"""report.md and the plots of an experiment."""

from ...core.metric_names import split_metric
from ...core.storage import join, write_bytes
from .convergence import SHARE
from .document import Comparison, Popularity, Results, Transferability, metrics_of
from .markdown import CONVERGENCE_NOTE, LINEAR_NOTE, comparison_cells, convergence_cells, spread, table
from .models import Models
from .plots import write_plots

TABLE_METRICS = ("recall", "ndcg", "ndcg_retrieved")


def write_report(run_dir: str, models: Models, results: Results) -> str:
    """Writes report.md and plots/; returns the table of the recipe's models."""
    metric, transfer = results["metric"], results["transferability"]
    main = [name for name, model in results["models"].items() if model["role"] == "model"]
    others = [name for name, model in results["models"].items() if model["role"] != "model"]
    cutoffs, main_k = models.recipe.base.evaluation.cutoffs, split_metric(metric)[1]
    shown = _metric_table(results, main, main_k)
    counts, users = results["dataset"]["num_interactions"], results["dataset"]["test_users"]
    parts = [
        f"# Experiment {results['experiment']}",
        f"{len(results['seeds'])} seeds ({', '.join(map(str, results['seeds']))}); {results['dataset']['num_users']:,} users, "
        f"{results['dataset']['num_items']:,} items; train {counts['train']:,}, validation {counts['validation']:,}, test "
        f"{counts['test']:,} interactions. Epochs and settings are chosen on validation; test was read once, after every choice. Mean ± "
        "standard deviation over seeds.",
        "## Models",
        shown,
        _cutoff_table(results, main, cutoffs, main_k),
        _cost_table(results, main),
        *_ratio_table(models, results, main),
        *_modality_table(results),
        *_choices(results),
        f"## Steps to {SHARE:g} of validation {metric}",
        CONVERGENCE_NOTE,
        _convergence_table(results),
        *_linear_table(results),
        f"## Paired tests over {users:,} users, test {metric}",
        f"A user's {metric} is averaged over the seeds. Difference with its 95 % bootstrap interval over users; two-sided p of the paired "
        "t-test, the same adjusted for the number of rows (Holm), and of random sign flips.",
        _comparison_table(results["comparisons"], "first - second"),
        *(_transfer_text(transfer, metric) if transfer else []),
    ]
    parts += [f"## Share of test items found in lists of {results['popularity']['k']}, by their train interactions"]
    parts += [_popularity_table(results["popularity"])]
    if results["ablations"]:
        parts += ["## Ablations", _ablation_table(results), _comparison_table(results["ablations"], f"difference in test {metric}")]
    for name, points in results["sweeps"].items():
        parts += [f"## Sweep: {name}", _metric_table(results, points, main_k)]
    if others:
        supports = [name for name in others if results["models"][name]["role"] == "support"]
        parts += ["## Teachers of ablated and swept students", _metric_table(results, supports, main_k)] if supports else []
    plots = write_plots(run_dir, models, results)
    parts += ["## Plots", *(f"![{title}](plots/{file})" for file, title in plots)]
    write_bytes(join(run_dir, "report.md"), ("\n\n".join(parts) + "\n").encode())
    return shown


def _label(results: Results, name: str) -> str:
    return f"{name} †" if results["models"][name]["added"] else name


def _metric_table(results: Results, names: list[str], k: int) -> str:
    """Tabulates validation and test at the main list length."""
    columns = [(split, f"{m}@{k}") for split in ("validation", "test") for m in TABLE_METRICS]
    head = ["", "seeds", *(f"{split} {metric}" for split, metric in columns)]
    rows = []
    for name in names:
        model = results["models"][name]
        figures = [spread(metrics_of(model, split)[metric]) for split, metric in columns]
        rows.append([_label(results, name), str(len(results["seeds"])), *figures])
    note = (
        "\n\n† added to the recipe when test figures of the others were known" if any(results["models"][n]["added"] for n in names) else ""
    )
    return table(head, rows) + note


def _cutoff_table(results: Results, names: list[str], cutoffs: list[int], main_k: int) -> str:
    """Tabulates test at the other list lengths."""
    columns = [f"{m}@{k}" for k in cutoffs if k != main_k for m in ("recall", "ndcg")]
    if not columns:
        return ""
    rows = [[_label(results, name), *(spread(results["models"][name]["test"][c]) for c in columns)] for name in names]
    return table(["", *(f"test {c}" for c in columns)], rows)


def _cost_table(results: Results, names: list[str]) -> str:
    head = ["", "trained parameters", "bytes to serve", "train seconds an epoch", "epochs", "seconds to rank all users"]
    rows = []
    for name in names:
        m = results["models"][name]
        sizes = [f"{m[key]['mean']:,.0f}" for key in ("num_parameters", "serving_bytes")]
        times = [spread(m["seconds_per_epoch"], 2), spread(m["epochs"], 1), spread(m["ranking_seconds"], 3)]
        rows.append([name, *sizes, *times])
    return table(head, rows) + (
        f"\n\nTimes are of {results['threads']} torch thread(s), with other cells beside them; lists of {results['list_length']} items."
    )


def _ratio_table(models: Models, results: Results, names: list[str]) -> list[str]:
    """Tabulates what students keep of their teachers' metric, and at what size."""
    metric, rows = results["metric"], []
    for name in names:
        teacher = models[name].teacher
        if teacher is None:
            continue
        own, taught_by = results["models"][name], results["models"][teacher]
        sizes = [f"{own[key]['mean'] / taught_by[key]['mean']:.2%}" for key in ("num_parameters", "serving_bytes", "ranking_seconds")]
        agrees = own.get("agreement") or {}
        shared = spread(agrees[at]) if (at := f"agreement@{split_metric(metric)[1]}") in agrees else ""
        rows.append([f"{name} / {teacher}", *sizes, f"{own['test'][metric]['mean'] / taught_by['test'][metric]['mean']:.3f}", shared])
    head = ["student / teacher", "trained parameters", "bytes to serve", "seconds to rank all users", f"test {metric}", "agreement"]
    return [table(head, rows)] if rows else []


def _modality_table(results: Results) -> list[str]:
    """Tabulates how well the paths of a teacher's modalities rank alone."""
    rows = [
        [_label(results, name), ", ".join(f"{modality} {spread(value)}" for modality, value in model["modalities"].items())]
        for name, model in results["models"].items()
        if model["modalities"]
    ]
    return [table(["modality paths alone", f"validation {results['metric']}"], rows)] if rows else []


def _convergence_table(results: Results) -> str:
    """Tabulates when the models and ablations reached a share of their teacher's validation metric, or of their own."""
    rows = []
    for name, model in results["models"].items():
        if model["role"] in ("model", "ablation"):
            convergence = model["convergence"]
            threshold = sum(convergence["thresholds"]) / len(convergence["thresholds"])
            rows.append([_label(results, name), convergence["of"] or "its own", f"{threshold:.4f}", *convergence_cells(convergence)])
    return table(["", "metric of", f"mean threshold, {results['metric']}", "steps", "seconds"], rows)


def _linear_table(results: Results) -> list[str]:
    """Tabulates when the models and ablations reached the validation metric of the best linear model; nothing where there is none."""
    rows, best = [], None
    for name, model in results["models"].items():
        reached = model["as_linear"]
        if reached is not None and model["role"] in ("model", "ablation"):
            best = reached["of"], sum(reached["thresholds"]) / len(reached["thresholds"])
            rows.append([_label(results, name), *convergence_cells(reached)])
    if best is None:
        return []
    title = f"## Steps to the best linear model, {best[0]}: validation {results['metric']} {best[1]:.4f}"
    return [title, LINEAR_NOTE, table(["", "steps", "seconds"], rows)]


def _popularity_table(popularity: Popularity) -> str:
    groups = popularity["num_pairs"]
    rows = [["test pairs", *(f"{number:,}" for number in groups.values())]]
    rows += [[name, *(spread(found[group]) for group in groups)] for name, found in popularity["models"].items()]
    return table(["", *groups], rows)


def _choices(results: Results) -> list[str]:
    """Tabulates the settings that searches chose."""
    rows = []
    for name, model in results["models"].items():
        if model["search"]:
            chosen = ", ".join(f"{key}={value}" for key, value in model["search"]["settings"].items())
            rows.append([name, str(len(model["search"]["trials"])), f"{model['search']['value']:.4f}", chosen])
        if model["fit_trials"]:
            rows.append([f"{name}, inside each fit", f"{model['fit_trials']['mean']:g}", "", ""])
    head = ["random search on validation", "trials", f"best validation {results['metric']}", "chosen settings"]
    return [table(head, rows)] if rows else []


def _comparison_table(comparisons: list[Comparison], what: str) -> str:
    return table(["", what, "95 % interval", "p, t-test", "p, Holm", "p, sign flips"], [comparison_cells(row) for row in comparisons])


def _transfer_text(transfer: Transferability, metric: str) -> list[str]:
    """Describes transferability, with what it rests on."""
    lead = transfer["teacher_lead"]
    formula = f"({transfer['student']} - {transfer['undistilled']}) / ({transfer['teacher']} - {transfer['undistilled']})"
    if transfer["value"] is None:
        return [
            "## Transferability",
            f"{formula} is not defined: {transfer['teacher']} and {transfer['undistilled']} have the same {metric}.",
        ]
    interval = f"{transfer['low']:.2f} to {transfer['high']:.2f}" if transfer["low"] is not None else "not defined"
    seeds = ", ".join("not defined" if v is None else f"{v:.2f}" for v in transfer["by_seed"])
    over = f"; mean ± standard deviation {spread(transfer['over_seeds'], 2)}" if transfer["over_seeds"] else ""
    warning = "" if lead["low"] > 0 else " That reaches 0: the teacher has no certain lead, and the ratio is not to be relied on."
    return [
        "## Transferability",
        f"{formula} of test {metric}: **{transfer['value']:.2f}**, 95 % bootstrap interval over users {interval} (one resample for all "
        f"three models). By seed: {seeds}{over}. The teacher's lead, which it is a share of, is {lead['value']:+.4f} ({lead['low']:+.4f} "
        f"to {lead['high']:+.4f}).{warning}",
    ]


def _ablation_table(results: Results) -> str:
    names: list[str] = []
    for row in results["ablations"]:
        names += [name for name in (row["second"], row["first"]) if name not in names]
    return _metric_table(results, names, split_metric(results["metric"])[1])
