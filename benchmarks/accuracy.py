"""Rewrites the tables of docs/accuracy.md that come from experiments, and the reports in docs/experiments, from the experiments' folders.

    python benchmarks/accuracy.py RUNS

RUNS holds the folders `catalogs` and `budgets` that `promptmm experiment catalogs` and `promptmm experiment budgets` have finished
(`make accuracy DATA=DIR` makes them first). A table stands between `<!-- table: NAME -->` and `<!-- end of table -->`; text around it is
written by hand.
"""

import argparse
import json
import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from statistics import mean
from typing import Any

DOCS = Path(__file__).resolve().parents[1] / "docs"
CATALOGS = {"tiktok": "TikTok", "lfm2k": "Last.fm", "sports": "Sports", "movielens": "MovieLens", "dense": "dense, synthetic"}
EXPERIMENTS = {"catalogs": tuple(CATALOGS), "budgets": ("lfm2k", "movielens")}
WITH_LOSSES = ("lfm2k", "tiktok")
LOSSES = {
    "pair alone": "pairs alone",
    "list alone": "lists by modality alone",
    "embedding alone": "embeddings alone",
    "all losses": "all four",
    "all without pair": "all without pairs",
    "all without list": "all without lists by modality",
    "all without embedding": "all without embeddings",
    "all without score": "all without the score",
}
LABELS = {
    "ensemble": "the ensemble, the students' teacher",
    "student": "**student from a random start: a table of d = {dim}, lists alone**",
    "warm start": "student from a warm start",
    "warm start without positive": "student from a warm start, without the positive (as it is derived)",
    "promptmm": "promptmm alone",
    "no prompt": "promptmm without its prompt",
    "LightGCN": "LightGCN of d = 256",
    "undistilled": "LightGCN of the student's size (BPR)",
    "EASE + content": "EASE with content",
    "spectral + content": "spectral with content",
}
OF_STEPS = ("promptmm", "LightGCN", "student", "undistilled")
PLACES = (("validation", "recall@20"), ("test", "recall@20"), ("test", "ndcg@20"))
BUDGET_COLUMNS = ("validation", "test", "student minus it")
Results = dict[str, Any]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("runs", type=Path, help="folder of the experiments' folders")
    write(parser.parse_args().runs, DOCS)


def write(runs: Path, docs: Path) -> None:
    """Writes page and reports; nothing is touched unless all that they are made of is there.

    Raises:
        SystemExit: an experiment is not finished, or the page has no place for a table.
    """
    check_finished(runs)
    page = docs / "accuracy.md"
    text = page.read_text()
    for name, table in tables(runs).items():
        text = with_table(text, name, table)
    for name in EXPERIMENTS:
        copy_reports(runs / name, docs / "experiments" / name)
    page.write_text(text)


def check_finished(runs: Path) -> None:
    """Raises SystemExit that names everything which the experiments have not left."""
    folders = [runs / name / "catalogs" / catalog for name, catalogs in EXPERIMENTS.items() for catalog in catalogs]
    folders += [runs / name for name in EXPERIMENTS]
    missing = [str(path) for path in folders if not all((path / kind).exists() for kind in ("results.json", "report.md", "plots"))]
    if missing:
        raise SystemExit(f"these have no results, report or plots; finish the experiments with all catalogs first: {', '.join(missing)}")


def copy_reports(run: Path, folder: Path) -> None:
    """Copies an experiment's report, results and plots, and the reports and plots of its catalogs."""
    shutil.rmtree(folder, ignore_errors=True)
    for path in (run, *(run / "catalogs" / name for name in EXPERIMENTS[run.name])):
        into = folder / path.relative_to(run)
        shutil.copytree(path / "plots", into / "plots")
        shutil.copy(path / "report.md", into)
    shutil.copy(run / "results.json", folder)


def with_table(text: str, name: str, table: list[list[str]]) -> str:
    """Returns the page with one of its tables in place of what stands between its marks."""
    start, end = f"<!-- table: {name} -->\n", "<!-- end of table -->"
    before, *after = text.split(start)
    if len(after) != 1 or end not in after[0] or "<!-- table:" in after[0].split(end)[0]:
        raise SystemExit(f"docs/accuracy.md: the table {name} needs one place, between the lines {start.strip()} and {end}")
    return f"{before}{start}\n{in_markdown(table)}\n{end}{after[0].split(end, 1)[1]}"


def in_markdown(table: list[list[str]]) -> str:
    """Lays a table out: its first row is the header, its first column has words and the others figures."""
    header, *rows = table
    lines = [header, ["---", *["---:"] * (len(header) - 1)], *rows]
    return "".join("| " + " | ".join(line) + " |\n" for line in lines)


def tables(runs: Path) -> dict[str, list[list[str]]]:
    """Returns all tables by name, as rows of cells."""
    whole = results_of(runs / "catalogs")
    catalogs = {name: results_of(runs / "catalogs" / "catalogs" / name) for name in CATALOGS}
    compared = differences(whole)
    made = {"ranks": ranks(whole), "steps": steps(catalogs), "losses": losses(catalogs, compared), "budgets": budgets(runs / "budgets")}
    return made | {name: of_catalog(name, catalogs[name], compared) for name in CATALOGS}


def results_of(folder: Path) -> Results:
    return json.loads((folder / "results.json").read_text())


def differences(whole: Results) -> Callable[[str, str], Results | None]:
    """Returns what finds a comparison: the student minus a model on a catalog, with interval and p after Holm; None where there is none."""
    found = {(row["catalog"], row["first"], row["second"]): row for row in (*whole["comparisons"], *whole["ablations"])}

    def of(catalog: str, model: str) -> Results | None:
        if (catalog, "student", model) in found:
            return found[catalog, "student", model]
        row = found.get((catalog, model, "student"))
        return row and {**row, "difference": -row["difference"], "low": -row["high"], "high": -row["low"]}

    return of


def of_catalog(name: str, results: Results, compared: Callable[[str, str], Results | None]) -> list[list[str]]:
    """Returns a row for each model of a catalog, and for the prompt and the starts, the best on test first."""
    models, sizes = results["models"], results["dataset"]
    shown = [model for model in models if model not in LOSSES]
    shown.sort(key=lambda model: -models[model]["test"]["recall@20"]["mean"])
    rows = [["", "validation Recall@20", "test Recall@20", "NDCG@20", "student (random start) minus it"]]
    for model in shown:
        row, difference = models[model], compared(name, model)
        dim = row["num_parameters"]["by_seed"][0] // (sizes["num_users"] + sizes["num_items"])
        figures = [spread(row[split][metric]) for split, metric in PLACES]
        change = "" if difference is None else f"{signed(difference['difference'])} ({chance(difference)})"
        rows.append([LABELS.get(model, model).format(dim=dim), *figures, change])
    return rows


def ranks(whole: Results) -> list[list[str]]:
    """Returns test Recall@20 and the rank of every model on every catalog, and its mean rank."""
    models = whole["models"]
    rows = [["test Recall@20 (rank)", *CATALOGS.values(), "mean rank"]]
    for model in sorted(models, key=lambda name: models[name]["mean_rank"]):
        on = models[model]["catalogs"]
        tested = {catalog: on[catalog] for catalog in CATALOGS if on.get(catalog, {}).get("test")}
        cells = [ranked(tested[catalog]) if catalog in tested else "" for catalog in CATALOGS]
        some = "" if len(tested) == len(CATALOGS) else f" of {len(tested)}"
        rows.append([short(model), *cells, f"{models[model]['mean_rank']:.2f}{some}"])
    return rows


def ranked(result: Results) -> str:
    cell = f"{spread(result['test']['recall@20'])} ({result['rank']:g})"
    return f"**{cell}**" if result["rank"] == 1 else cell


def steps(catalogs: dict[str, Results]) -> list[list[str]]:
    """Returns how long trained models take to the validation metric of the best linear model, by catalog."""
    best = {name: results["models"]["student"]["as_linear"]["of"] for name, results in catalogs.items()}
    rows = [["", *(f"{CATALOGS[name]}: {short(best[name])}" for name in catalogs)]]
    for model in OF_STEPS:
        rows.append([short(model), *(how_long(results["models"].get(model)) for results in catalogs.values())])
    return rows


def how_long(model: Results | None) -> str:
    if model is None:
        return ""
    by_seed = model["as_linear"]["by_seed"]
    reached = [each for each in by_seed if each]
    if not reached:
        return "never"
    some = "" if len(reached) == len(by_seed) else f" ({len(reached)} of {len(by_seed)} seeds)"
    return f"{mean(each['steps'] for each in reached):.0f} steps, {mean(each['seconds'] for each in reached):.1f} s{some}"


def losses(catalogs: dict[str, Results], compared: Callable[[str, str], Results | None]) -> list[list[str]]:
    """Returns students of each loss alone and of all but one, beside the student of the score's loss."""
    rows = [["", *(cell for name in WITH_LOSSES for cell in (f"{CATALOGS[name]}, test Recall@20", "difference, 95 % interval"))]]
    for model, label in LOSSES.items():
        cells = []
        for name in WITH_LOSSES:
            row = compared(name, model)
            assert row is not None
            change, low, high = (signed(-row[key]) for key in ("difference", "high", "low"))
            cells += [spread(catalogs[name]["models"][model]["test"]["recall@20"]), f"{change} ({low} to {high}; {chance(row)})"]
        rows.append([label, *cells])
    return rows


def budgets(run: Path) -> list[list[str]]:
    """Returns what every model has with the same number of trials, the student first and then the best on test of the first catalog."""
    whole = results_of(run)
    compared, catalogs = differences(whole), EXPERIMENTS["budgets"]
    of = {name: results_of(run / "catalogs" / name)["models"] for name in catalogs}
    header = [f"{CATALOGS[name]}, {what}" if what == "validation" else what for name in catalogs for what in BUDGET_COLUMNS]
    models = sorted(whole["models"], key=lambda model: (model != "student", -of[catalogs[0]][model]["test"]["recall@20"]["mean"]))
    return [["", *header], *([short(model), *budget_cells(model, of, compared)] for model in models)]


def budget_cells(model: str, of: dict[str, Results], compared: Callable[[str, str], Results | None]) -> Iterator[str]:
    for name, models in of.items():
        difference = compared(name, model)
        yield from (number(models[model][split]["recall@20"]["mean"]) for split in ("validation", "test"))
        yield "" if difference is None else f"{signed(difference['difference'])} ({chance(difference)})"


def short(model: str) -> str:
    """Returns a model's name in tables that have little room."""
    return {"student": "student, random start", "undistilled": "LightGCN of the student's size"}.get(model, model.replace(" + ", " with "))


def number(value: float) -> str:
    return re.sub(r"^0", "", f"{value:.4f}")


def signed(value: float) -> str:
    return number(0) if round(value, 4) == 0 else f"{'+' if value > 0 else '-'}{number(abs(value))}"


def spread(values: Results) -> str:
    """Returns mean and standard deviation over seeds; without the latter where it rounds to 0."""
    return number(values["mean"]) + (f" ± {number(values['deviation'])}" if values["deviation"] >= 5e-5 else "")


def chance(row: Results) -> str:
    """Returns p after Holm's correction."""
    return f"p = {row['p_holm']:.2g}".replace("0.", ".") if row["p_holm"] >= 1e-3 else "p < .001"


if __name__ == "__main__":
    main()
