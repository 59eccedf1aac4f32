"""An experiment over several catalogs in numbers made by hand: ranks, Holm over all catalogs, budgets, and steps to a share of a metric."""

import pytest
from promptmm.core.statistics import holm
from promptmm.jobs.experiments.config import CatalogConfig, ExperimentConfig, ModelConfig, SearchConfig
from promptmm.jobs.experiments.convergence import first_reached
from promptmm.jobs.experiments.document import Comparison, Convergence, over_seeds
from promptmm.jobs.experiments.markdown import convergence_cells
from promptmm.jobs.experiments.settings import CatalogsRecipe
from promptmm.jobs.experiments.summary import Part, summarise
from promptmm.jobs.experiments.summary_report import write_summary

FIGURES = {  # test recall@20 by catalog and model, a value for each of two seeds
    "a": {"teacher": [0.4, 0.6], "student": [0.5, 0.5], "MF": [0.1, 0.2], "EASE": [0.3, 0.3]},
    "b": {"teacher": [0.20, 0.22], "student": [0.30, 0.32], "EASE": [0.33, 0.35]},
}
P_VALUES = {"a": {"teacher": 0.02, "MF": 0.001, "EASE": 0.04}, "b": {"teacher": 0.01, "EASE": 0.03}}
MODELS = {
    "teacher": ModelConfig("teacher"),
    "student": ModelConfig("student", "teacher"),
    "MF": ModelConfig("teacher"),
    "EASE": ModelConfig("teacher"),
}
SPACE = {"teacher.l2": [0.1, 0.2]}


def model_results(name: str, values: list[float]) -> dict:
    taught = name == "student"
    figure = over_seeds(values)
    steps = [None, None] if name == "MF" else [{"steps": 10, "seconds": 1.0}, {"steps": 30, "seconds": 3.0}]
    fitted = name == "EASE"
    return {
        "role": "model",
        "stage": MODELS[name].stage,
        "teacher": MODELS[name].teacher,
        "of": None,
        "validation": {},
        "test": {"recall@20": figure, "ndcg@20": over_seeds([value / 2 for value in values])},
        "modalities": {},
        "num_parameters": over_seeds([7, 7]),
        "serving_bytes": over_seeds([2048, 2048]),
        "seconds": over_seeds([1.5, 2.5]),
        "seconds_per_epoch": figure,
        "ranking_seconds": figure,
        "best_epoch": figure,
        "epochs": figure,
        "convergence": Convergence(
            of="teacher" if taught else None, thresholds=[0.1, 0.1], by_seed=[None, None] if fitted else steps, fitted=fitted
        ),
        "as_linear": None if fitted else Convergence(of="EASE", thresholds=[0.2, 0.2], by_seed=steps, fitted=False),
        "search": None,
        "fit_trials": over_seeds([17, 17]) if fitted else None,
        "added": False,
    }


def comparison(first: str, second: str, p: float) -> Comparison:
    return Comparison(first=first, second=second, difference=0.01, low=0.0, high=0.02, p_t=p, p_sign_flip=p, p_holm=p)


@pytest.fixture
def recipe() -> CatalogsRecipe:
    config = ExperimentConfig(
        models=MODELS,
        search={"teacher": SearchConfig(2, SPACE), "student": SearchConfig(2, SPACE)},
        catalogs={
            "a": CatalogConfig(set={"source.format": "mmrec"}),
            "b": CatalogConfig(recipe="lists", models={"EASE": {"teacher.l2": 0.5}}, without={"MF": "too many items"}),
        },
    )
    return CatalogsRecipe("mine", config, (), "/run", {})


@pytest.fixture
def parts() -> dict[str, Part]:
    found = {}
    for catalog, figures in FIGURES.items():
        results = {
            "experiment": f"mine, catalog {catalog}",
            "metric": "recall@20",
            "seeds": [0, 1],
            "threads": 1,
            "list_length": 50,
            "dataset": {
                "num_users": 10,
                "num_items": 20,
                "num_interactions": {"train": 55, "validation": 5, "test": 6},
                "modalities": {"text": {"dim": 8}},
                "digest": "",
                "test_users": 6,
            },
            "models": {name: model_results(name, values) for name, values in figures.items()},
            "comparisons": [comparison("student", name, p) for name, p in P_VALUES[catalog].items()],
            "transferability": None,
            "ablations": [comparison("without pair", "student", 0.04)],
            "sweeps": {},
            "popularity": {},
        }
        searched = {"trials": 2, "seeds": 1, "seconds": 12.0}
        budgets = {name: searched if name in ("teacher", "student") else {"trials": 0, "seeds": 0, "seconds": 0.0} for name in figures}
        found[catalog] = Part(
            results, budgets, {"MF": "too many items"} if catalog == "b" else {}, {"source.format": "mmrec"}, catalog == "b"
        )
    return found


def test_ranks_are_by_catalog_and_their_mean_is_over_the_catalogs_that_a_model_has(recipe, parts):
    models = summarise(recipe, parts)["models"]
    assert {name: [on["rank"] for on in model["catalogs"].values()] for name, model in models.items()} == {
        "teacher": [1.5, 3],  # as good as the student on a: the mean of places 1 and 2
        "student": [1.5, 2],
        "MF": [4],
        "EASE": [3, 1],
    }
    assert {name: model["mean_rank"] for name, model in models.items()} == {"teacher": 2.25, "student": 1.75, "MF": 4, "EASE": 2}
    assert models["MF"]["left_out"] == {"b": "too many items"}
    assert models["student"]["catalogs"]["b"]["share_of_teacher"] == pytest.approx(0.31 / 0.21)
    assert models["teacher"]["catalogs"]["b"]["share_of_teacher"] is None


def test_holm_is_over_the_rows_of_all_catalogs(recipe, parts):
    summary = summarise(recipe, parts)
    rows = summary["comparisons"]
    assert [(row["catalog"], row["second"]) for row in rows] == [(c, name) for c, by in P_VALUES.items() for name in by]
    # sorted .001 .01 .02 .03 .04, times 5 4 3 2 1, never falling
    expected = {("a", "MF"): 0.005, ("b", "teacher"): 0.04, ("a", "teacher"): 0.06, ("b", "EASE"): 0.06, ("a", "EASE"): 0.06}
    assert {(row["catalog"], row["second"]): row["p_holm"] for row in rows} == pytest.approx(expected)
    assert [row["p_holm"] for row in rows] != holm([0.02, 0.001, 0.04]) + holm([0.01, 0.03])
    assert [row["p_holm"] for row in summary["ablations"]] == pytest.approx([0.08, 0.08])
    assert parts["a"].results["comparisons"][0]["p_holm"] == 0.02  # the catalog's own stays as it is


def test_the_report_says_what_was_compared_and_at_which_budget(recipe, parts, tmp_path):
    summary = summarise(recipe, parts)
    table = write_summary(str(tmp_path), recipe.config, summary)
    text = (tmp_path / "report.md").read_text()
    assert table in text
    for line in (
        "|  | a | b ‡ | mean rank |",
        "| teacher | 0.5000 ± 0.1414 (1.5) | 0.2100 ± 0.0141 (3) | 2.25 |",
        "| MF | 0.1500 ± 0.0707 (4) | - | 4.00 of 1 |",
        "| EASE | 0.3000 ± 0.0000 (3) | **0.3400 ± 0.0141 (1)** | 2.00 |",
        "- is not trained: MF on b: too many items.",
        "| student / teacher | 1.000 | 1.476 |",
        "| a | 10 | 20 | 55 | 5 | 6 | 5.5 | text 8 | defaults |",
        "- b: source.format=mmrec; EASE: teacher.l2=0.5",
        "| a: student - MF | +0.0100 | +0.0000 to +0.0200 | 0.001 | 0.005 | 0.001 |",
        "all 5 rows of this table, those of all catalogs together (Holm)",
        "the same for every model that is searched, on every catalog: teacher, student.",
        "EASE try settings on validation inside each fit.",
        "Not searched, with the settings of their recipes: MF.",
        "The models do not all have the same number of trials: from 0 to 17.",
        "| student | 2 trials, 12 s | 2 trials, 12 s |",
        "| EASE | 17 trials inside a fit of 2.0 s | 17 trials inside a fit of 2.0 s |",
        "| MF | none | - |",
        "| MF | never | - |",
        "| EASE | - | - |",
        "| student | 20 ± 14; 2.0 ± 1.4 s | 20 ± 14; 2.0 ± 1.4 s |",
        "| MF | 2,048 | - |",
        "The best one is EASE on a, EASE on b.",
    ):
        assert line in text, line
    for plot in ("models", "differences", "cost"):
        assert f"(plots/{plot}.png)" in text
        assert (tmp_path / "plots" / f"{plot}.png").stat().st_size > 10_000


def history(*values: float | None) -> list[dict[str, float]]:
    rows = [{"epoch": epoch, "seconds": 2.0} for epoch in range(len(values))]
    return [row if value is None else {**row, "validation/recall@20": value} for row, value in zip(rows, values)]


@pytest.mark.parametrize(
    ("values", "threshold", "best", "expected"),
    [
        ([0.1, 0.3, 0.2], 0.3, (1, 0.3), {"steps": 14, "seconds": 4.0}),
        ([None, 0.3, None, 0.4], 0.31, (3, 0.4), {"steps": 28, "seconds": 8.0}),  # validation every other epoch
        ([0.1, 0.2], 0.3, (1, 0.2), None),
        ([0.1, 0.2], 0.3, (-1, 0.31), {"steps": 0, "seconds": 0.0}),  # the start was the best, and above
        ([0.1, 0.2], 0.3, (-1, 0.29), None),
        ([], 0.3, (0, 0.5), None),
    ],
)
def test_the_first_validation_above_a_threshold(values, threshold, best, expected):
    assert first_reached(history(*values), "recall@20", threshold, 7, *best) == expected


def test_how_a_convergence_reads():
    ten, twenty = {"steps": 10, "seconds": 1.0}, {"steps": 20, "seconds": 2.0}
    assert convergence_cells(Convergence(of=None, thresholds=[], by_seed=[ten, twenty], fitted=False)) == ["15 ± 7", "1.5 ± 0.7"]
    assert convergence_cells(Convergence(of=None, thresholds=[], by_seed=[None, ten, None], fitted=False)) == [
        "10 (1 of 3 seeds, else never)",
        "1.0",
    ]
    assert convergence_cells(Convergence(of=None, thresholds=[], by_seed=[None], fitted=False)) == ["never", "never"]
    assert convergence_cells(Convergence(of=None, thresholds=[], by_seed=[None], fitted=True)) == ["-", "-"]
