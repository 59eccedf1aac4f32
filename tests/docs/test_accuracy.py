"""benchmarks/accuracy.py: tables of docs/accuracy.md from the folders of experiments, here of invented figures."""

import importlib.util
import json
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def accuracy() -> ModuleType:
    spec = importlib.util.spec_from_file_location("accuracy", ROOT / "benchmarks" / "accuracy.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def model(recall: float, steps: int | None = 30) -> dict[str, Any]:
    values = {"recall@20": {"mean": recall, "deviation": 0.001}, "ndcg@20": {"mean": recall / 2, "deviation": 0.0}}
    reached = [steps and {"steps": steps, "seconds": 1.5}] * 2
    return {
        "test": values,
        "validation": values,
        "num_parameters": {"by_seed": [30 * 16]},
        "as_linear": {"of": "EASE + content", "by_seed": reached},
        "rank": 1 if recall > 0.3 else 2,
    }


def compared(catalog: str, first: str, second: str, difference: float, p: float) -> dict[str, Any]:
    low, high = difference - 0.01, difference + 0.01
    return {"catalog": catalog, "first": first, "second": second, "difference": difference, "low": low, "high": high, "p_holm": p}


@pytest.fixture
def runs(tmp_path, accuracy) -> Path:
    """Folders of finished experiments, in which a loss alone is what comes first in the comparison with the student."""
    for experiment, catalogs in accuracy.EXPERIMENTS.items():
        models = {"student": model(0.31), "EASE + content": model(0.2, None), **{name: model(0.1) for name in accuracy.LOSSES}}
        one = {"models": models, "dataset": {"num_users": 10, "num_items": 20}}
        rows = [compared(name, "student", "EASE + content", 0.11, 1e-5) for name in catalogs]
        losses = [compared(name, loss, "student", -0.21, 0.014) for name in catalogs for loss in accuracy.LOSSES]
        across = {
            name: {
                "mean_rank": rank,
                "catalogs": {catalog: models[name] for catalog in catalogs if (name, catalog) != ("EASE + content", "dense")},
            }
            for name, rank in (("EASE + content", 2.0), ("student", 1.0))
        }
        whole = {"models": across, "comparisons": rows, "ablations": losses}
        for path, results in ((experiment, whole), *((f"{experiment}/catalogs/{name}", one) for name in catalogs)):
            (tmp_path / path / "plots").mkdir(parents=True)
            (tmp_path / path / "plots" / "models.png").write_text(path)
            (tmp_path / path / "report.md").write_text(path)
            (tmp_path / path / "results.json").write_text(json.dumps(results))
    return tmp_path


@pytest.fixture
def docs(tmp_path) -> Path:
    folder = tmp_path / "docs"
    folder.mkdir()
    (folder / "accuracy.md").write_text((ROOT / "docs" / "accuracy.md").read_text())
    return folder


def table(docs: Path, name: str) -> list[str]:
    text = (docs / "accuracy.md").read_text()
    return text.split(f"<!-- table: {name} -->\n\n")[1].split("\n\n<!-- end of table -->")[0].splitlines()[2:]


def test_tables_and_reports_are_those_of_the_folders(accuracy, runs, docs):
    accuracy.write(runs, docs)
    assert table(docs, "lfm2k") == [
        "| **student from a random start: a table of d = 16, lists alone** | .3100 ± .0010 | .3100 ± .0010 | .1550 |  |",
        "| EASE with content | .2000 ± .0010 | .2000 ± .0010 | .1000 | +.1100 (p < .001) |",
    ]
    assert table(docs, "ranks") == [
        "| student, random start | " + " | ".join(["**.3100 ± .0010 (1)**"] * 5) + " | 1.00 |",
        "| EASE with content | " + " | ".join([".2000 ± .0010 (2)"] * 4) + " |  | 2.00 of 4 |",
    ]
    assert table(docs, "steps")[2] == "| student, random start | " + " | ".join(["30 steps, 1.5 s"] * 5) + " |"
    assert table(docs, "losses")[0] == (
        "| pairs alone | .1000 ± .0010 | -.2100 (-.2200 to -.2000; p = .014) | .1000 ± .0010 | -.2100 (-.2200 to -.2000; p = .014) |"
    )
    assert table(docs, "budgets")[1] == "| EASE with content | .2000 | .2000 | +.1100 (p < .001) | .2000 | .2000 | +.1100 (p < .001) |"
    assert (docs / "experiments/catalogs/catalogs/sports/plots/models.png").read_text() == "catalogs/catalogs/sports"
    assert json.loads((docs / "experiments/budgets/results.json").read_text())["comparisons"]
    before = (docs / "accuracy.md").read_text()
    accuracy.write(runs, docs)
    assert (docs / "accuracy.md").read_text() == before


def test_what_is_not_finished_is_named_and_nothing_is_touched(accuracy, runs, docs):
    accuracy.write(runs, docs)
    before = {path: path.read_bytes() for path in docs.rglob("*") if path.is_file()}
    for gone in ("budgets/report.md", "catalogs/catalogs/dense/results.json"):
        (runs / gone).unlink()
    with pytest.raises(SystemExit, match=r"no results.* finish .*/catalogs/catalogs/dense, .*/budgets$"):
        accuracy.write(runs, docs)
    assert {path: path.read_bytes() for path in docs.rglob("*") if path.is_file()} == before


@pytest.mark.parametrize(
    "text",
    [
        "nothing",
        "<!-- table: ranks -->\n",
        "<!-- table: ranks -->\n<!-- table: steps -->\n<!-- end of table -->",
        2 * "<!-- table: ranks -->\n<!-- end of table -->\n",
    ],
)
def test_a_page_without_one_place_for_a_table_is_refused(accuracy, text):
    with pytest.raises(SystemExit, match="the table ranks needs one place"):
        accuracy.with_table(text, "ranks", [["a"], ["b"]])
