"""report.md of an experiment over several catalogs: ranks, paired tests, budgets and costs side by side."""

from collections.abc import Callable, Sequence

from ...core.storage import join, write_bytes
from .config import ExperimentConfig
from .convergence import SHARE
from .document import Convergence, Spread
from .markdown import CONVERGENCE_NOTE, LINEAR_NOTE, comparison_cells, convergence_cells, spread, table
from .summary import CatalogComparison, OnCatalog, Summary, metrics_shown
from .summary_plots import write_summary_plots

NONE = "-"


def write_summary(run_dir: str, config: ExperimentConfig, summary: Summary) -> str:
    """Writes report.md and plots/ of an experiment over several catalogs; returns the table of ranks."""
    metric, seeds = summary["metric"], summary["seeds"]
    ranks = _rank_table(summary)
    parts = [
        f"# Experiment {summary['experiment']}",
        f"{len(summary['catalogs'])} catalogs; {len(seeds)} seeds ({', '.join(map(str, seeds))}). Epochs and settings are chosen on "
        "validation; test was read once, after every choice on every catalog. Mean ± standard deviation over seeds. What each catalog has "
        f"beside this is in its own report: {', '.join(f'[{name}](catalogs/{name}/report.md)' for name in summary['catalogs'])}.",
        "## Catalogs",
        _catalog_table(summary),
        *_settings_of_catalogs(summary),
        f"## Test {metric} and rank",
        ranks,
    ]
    for further in metrics_shown(metric)[1:]:
        parts += [f"## Test {further}", _table(summary, lambda on, m=further: spread(on["test"][m]))]  # type: ignore[misc]
    parts += _students(summary)
    parts += [
        f"## Paired tests of {metric}, over users",
        f"A user's {metric} is averaged over the seeds. Difference with its 95 % bootstrap interval over users; two-sided p of the paired "
        f"t-test, the same adjusted for all {len(summary['comparisons'])} rows of this table, those of all catalogs together (Holm), and "
        "of random sign flips.",
        _comparison_table(summary["comparisons"], "first - second"),
    ]
    if summary["ablations"]:
        parts += [
            "## Ablations",
            f"Each ablation beside the model that it changes, as above; Holm's correction is for all {len(summary['ablations'])} rows.",
            _comparison_table(summary["ablations"], f"difference in test {metric}"),
        ]
    parts += ["## Search budgets", _budget_text(config, summary), _table(summary, _budget)]
    parts += [
        "## Seconds to train",
        f"Wall-clock seconds of a cell since it last started, on {summary['threads']} torch thread(s) with other cells beside it, searches "
        "inside a fit included.",
        _table(summary, lambda on: spread(on["seconds"], 1)),
        "## Bytes to serve",
        _table(summary, lambda on: f"{on['serving_bytes']['mean']:,.0f}"),
        "## Plots",
        *(f"![{title}](plots/{file})" for file, title in write_summary_plots(run_dir, summary)),
    ]
    write_bytes(join(run_dir, "report.md"), ("\n\n".join(parts) + "\n").encode())
    return ranks


def _label(summary: Summary, catalog: str) -> str:
    return f"{catalog} ‡" if summary["catalogs"][catalog]["added"] else catalog


def _table(
    summary: Summary, cell: Callable[[OnCatalog], str], further: Callable[[str], list[str]] | None = None, head: Sequence[str] = ()
) -> str:
    """Tabulates models by catalogs, with further columns at the end.

    Args:
        summary: All results.
        cell: Formats a model on a catalog.
        further: Further cells of a model, by name.
        head: Their heads.
    """
    rows = []
    for name, model in summary["models"].items():
        on = [model["catalogs"].get(catalog) for catalog in summary["catalogs"]]
        rows.append([name, *(NONE if found is None else cell(found) for found in on), *(further(name) if further else [])])
    return table(["", *(_label(summary, catalog) for catalog in summary["catalogs"]), *head], rows)


def _rank_table(summary: Summary) -> str:
    """Tabulates the test metric and the rank, the best of a catalog in bold, and the mean rank; says what is left out and why."""
    metric, models = summary["metric"], summary["models"]

    def cell(on: OnCatalog) -> str:
        text = f"{spread(on['test'][metric])} ({on['rank']:g}){' †' if on['added'] else ''}"
        return f"**{text}**" if on["rank"] == 1 else text

    def mean(name: str) -> list[str]:
        rank, number = models[name]["mean_rank"], len(models[name]["catalogs"])
        return [NONE if rank is None else f"{rank:.2f}" + ("" if number == len(summary["catalogs"]) else f" of {number}")]

    notes = [_table(summary, cell, mean, ["mean rank"])]
    missing = [f"{name} on {catalog}: {reason}" for name, model in models.items() for catalog, reason in model["left_out"].items()]
    if missing:
        notes.append(
            f"{NONE} is not trained: {'; '.join(missing)}. A rank is among the models of its catalog, and the mean is over the catalogs "
            "that a model was trained on."
        )
    if any(on["added"] for model in models.values() for on in model["catalogs"].values()):
        notes.append("† added to the recipe when test figures of the others were known")
    if any(facts["added"] for facts in summary["catalogs"].values()):
        notes.append("‡ catalog that was added when test figures on the others were known")
    return "\n\n".join(notes)


def _catalog_table(summary: Summary) -> str:
    rows = []
    for name, facts in summary["catalogs"].items():
        dataset = facts["dataset"]
        counts = dataset["num_interactions"]
        modalities = ", ".join(f"{modality} {info['dim']}" for modality, info in dataset["modalities"].items())
        numbers = [dataset["num_users"], dataset["num_items"], counts["train"], counts["validation"], counts["test"]]
        a_user = f"{counts['train'] / dataset['num_users']:.1f}"
        rows.append(
            [_label(summary, name), *(f"{number:,}" for number in numbers), a_user, modalities or "none", facts["recipe"] or "defaults"]
        )
    return table(["", "users", "items", "train", "validation", "test", "train a user", "modalities, dimensions", "base recipe"], rows)


def _settings_of_catalogs(summary: Summary) -> list[str]:
    """Lists what is set for the models of a catalog and for some of them on it alone, by the recipe and on the command line."""
    lines = []
    for name, facts in summary["catalogs"].items():
        shown = [_settings(facts["settings"])] if facts["settings"] else []
        shown += [f"{model}: {_settings(changes)}" for model, changes in facts["models"].items()]
        lines += [f"- {name}: {'; '.join(shown)}"] if shown else []
    return ["Settings over a catalog's base recipe, of the experiment's recipe and of the command line:", "\n".join(lines)] if lines else []


def _settings(values: dict[str, object]) -> str:
    return ", ".join(f"{key}={value}" for key, value in values.items())


def _students(summary: Summary) -> list[str]:
    """Tabulates what students keep of their teachers, and when models reach a share of a validation metric."""
    taught = {name: model for name, model in summary["models"].items() if model["teacher"]}
    parts = []
    if taught:
        rows = []
        for name, model in taught.items():
            on = [model["catalogs"].get(catalog) for catalog in summary["catalogs"]]
            shares = [found["share_of_teacher"] if found else None for found in on]
            rows.append([f"{name} / {model['teacher']}", *(NONE if share is None else f"{share:.3f}" for share in shares)])
        head = ["student / teacher", *(_label(summary, catalog) for catalog in summary["catalogs"])]
        parts += [f"## Students as a share of their teachers, test {summary['metric']}", table(head, rows)]

    def steps(found: Convergence | None) -> str:
        number, seconds = [NONE, NONE] if found is None else convergence_cells(found)
        return number if number in (NONE, "never") else f"{number}; {seconds} s"

    parts += [
        f"## Steps to {SHARE:g} of validation {summary['metric']}",
        CONVERGENCE_NOTE,
        _table(summary, lambda on: steps(on["convergence"])),
    ]
    best = _best_linear(summary)
    if best:
        parts += [
            f"## Steps to the best linear model's validation {summary['metric']}",
            f"{LINEAR_NOTE} The best one is {', '.join(f'{name} on {catalog}' for catalog, name in best.items())}.",
            _table(summary, lambda on: steps(on["as_linear"])),
        ]
    return parts


def _best_linear(summary: Summary) -> dict[str, str]:
    """Names the best linear model of every catalog that has one."""
    found = {}
    for model in summary["models"].values():
        for catalog, on in model["catalogs"].items():
            if on["as_linear"] is not None and on["as_linear"]["of"] is not None:
                found[catalog] = on["as_linear"]["of"]
    return {catalog: found[catalog] for catalog in summary["catalogs"] if catalog in found}


def _comparison_table(comparisons: Sequence[CatalogComparison], what: str) -> str:
    rows = []
    for row in comparisons:
        pair, *figures = comparison_cells(row)
        rows.append([f"{row['catalog']}: {pair}", *figures])
    return table(["", what, "95 % interval", "p, t-test", "p, Holm", "p, sign flips"], rows)


def _budget(on: OnCatalog) -> str:
    """Formats what was spent on choosing settings: trials and seconds of the search, and trials inside each fit."""
    budget, shown = on["budget"], []
    if budget["trials"]:
        seeds = "" if budget["seeds"] == 1 else f" at {budget['seeds']} seeds"
        shown.append(f"{budget['trials']} trials{seeds}, {budget['seconds']:.0f} s")
    if on["fit_trials"] is not None:
        shown.append(f"{on['fit_trials']['mean']:g} trials inside a fit of {_seconds(on['seconds'])}")
    return "; ".join(shown) or "none"


def _seconds(value: Spread) -> str:
    return f"{value['mean']:.1f} s"


def _budget_text(config: ExperimentConfig, summary: Summary) -> str:
    """Says whether the models that are compared had the same budget, and which had another."""
    searched = [name for name in summary["models"] if name in config.search]
    fitted = {name for name, model in summary["models"].items() for on in model["catalogs"].values() if on["fit_trials"] is not None}
    unsearched = [name for name in summary["models"] if name not in config.search and name not in fitted]
    sentences = []
    if searched:
        search = config.search[searched[0]]
        sentences.append(
            f"A search draws {search.trials} points at random, or all of a space that has no more, and trains each at {len(search.seeds)} "
            f"seed(s) on validation, the same for every model that is searched, on every catalog: {', '.join(searched)}."
        )
    if fitted:
        sentences.append(f"{', '.join(sorted(fitted))} try settings on validation inside each fit.")
    if unsearched:
        sentences.append(f"Not searched, with the settings of their recipes: {', '.join(unsearched)}.")
    trials = {
        on["budget"]["trials"] or _mean(on["fit_trials"]) for model in summary["models"].values() for on in model["catalogs"].values()
    }
    same = (
        f"All models have the same number of trials, {max(trials):g}."
        if len(trials) == 1
        else (f"The models do not all have the same number of trials: from {min(trials):g} to {max(trials):g}.")
    )
    return " ".join([*sentences, same, "Seconds are the training time of trials that ended with a result."])


def _mean(value: Spread | None) -> float:
    return 0.0 if value is None else value["mean"]
