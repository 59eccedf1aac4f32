"""`promptmm experiment` over two tiny catalogs, one of which has no features: what it leaves, goes on from, and never allows."""

import json
import re
from pathlib import Path

import matplotlib.image
import pytest
import yaml
from promptmm.core.artifact import sealed
from promptmm.core.statistics import holm
from promptmm.core.storage import read_json, write_json
from promptmm.graph_store.dataset import open_dataset
from promptmm.jobs.experiments.records import CellRecord, CellResult, read_cell, write_cell
from promptmm.jobs.runs.models import trained_teacher

pytestmark = [pytest.mark.whole, pytest.mark.usefixtures("ray_cluster")]
EXPERIMENT = {
    "seeds": [0, 1],
    "models": {
        "teacher": {"stage": "teacher"},
        "student": {"stage": "student", "teacher": "teacher", "set": {"distill.list_weight": 0, "distill.embedding_weight": 0}},
        "VBPR": {"stage": "teacher", "set": {"teacher.kind": "vbpr"}},
    },
    "ablations": {"slow": {"of": "student", "set": {"student.train.learning_rate": 1e-6}}},
    "search": {"teacher": {"trials": 2, "space": {"teacher.l2": [0.001, 0.01, 0.1]}}},
    "catalogs": {
        "rich": {"set": {"source.synthetic_num_users": 100}},
        "bare": {
            "set": {"source.modalities": {}},
            "models": {"teacher": {"teacher.kind": "lightgcn"}},
            "without": {"VBPR": "reads features"},
        },
    },
}
WORDS = ["catalogs.bare.source.synthetic_num_items=70", "teacher.train.learning_rate=0.02", "student.train.learning_rate=0.02"]
CELLS = {"rich": ("teacher", "student", "VBPR", "slow"), "bare": ("teacher", "student", "slow")}


@pytest.fixture(scope="module")
def printed() -> list[str]:
    """What the experiment of `run_dir` printed."""
    return []


@pytest.fixture(scope="module")
def run_dir(recipe, tmp_path_factory, printed) -> Path:
    """The folder of a finished experiment."""
    import contextlib
    import io
    import signal

    from promptmm.jobs.cli import main

    folder, out = tmp_path_factory.mktemp("experiment") / "run", io.StringIO()
    handler = signal.getsignal(signal.SIGTERM)
    with contextlib.redirect_stdout(out):
        assert main(["experiment", str(recipe()), f"run.dir={folder}", *WORDS]) == 0
    signal.signal(signal.SIGTERM, handler)
    printed[:] = out.getvalue().splitlines()
    return folder


def states(folder: Path) -> dict[str, int]:
    """When each record was written."""
    return {str(p): p.stat().st_mtime_ns for name in ("cell.json", "test.json", "test.safetensors") for p in folder.rglob(name)}


def test_every_catalog_has_its_cells_records_and_report(run_dir):
    for catalog, names in CELLS.items():
        folder = run_dir / "catalogs" / catalog
        assert {p.name for p in folder.iterdir()} == {
            *("dataset", "stages", "search", "cells", "plots"),
            *("experiment.yaml", "choices.json", "frozen.json", "results.json", "report.md"),
        }
        assert {p.name for p in (folder / "cells").iterdir()} == {*names}
        digest = open_dataset(str(folder / "dataset")).digest
        for name in names:
            for seed in (0, 1):
                record = read_json(f"{folder}/cells/{name}/seed-{seed}/cell.json")
                assert record["done"]
                assert record["made_with"]["dataset"] == digest
                assert "trials" not in record
    assert {p.name for p in run_dir.iterdir()} == {"catalogs", "experiment.yaml", "frozen.json", "results.json", "report.md", "plots"}
    assert read_json(f"{run_dir}/frozen.json") == {"catalogs": ["rich", "bare"], "added": []}
    sizes = [open_dataset(f"{run_dir}/catalogs/{name}/dataset") for name in CELLS]
    assert [(d.num_users, d.num_items, bool(d.modalities)) for d in sizes] == [(100, 80, True), (120, 70, False)]
    kinds = [read_json(f"{run_dir}/catalogs/{name}/cells/teacher/seed-0/cell.json")["made_with"]["teacher"]["kind"] for name in CELLS]
    assert kinds == ["promptmm", "lightgcn"]


def test_catalogs_are_trained_beside_each_other_and_tested_after_all(run_dir, printed):
    ended = [line.removeprefix("[experiment] ") for line in printed if re.match(r"\[experiment\] (rich|bare): .* cells, ", line)]
    places = {name: [place for place, line in enumerate(ended) if line.startswith(f"{name}:")] for name in CELLS}
    first, last = ({name: choose(found) for name, found in places.items()} for choose in (min, max))
    assert max(first.values()) < min(last.values()), "cells of one catalog end before those of the other have all ended"
    assert {line.partition(", seed")[0] for line in ended} == {
        f"{catalog}: {name}" for catalog, names in CELLS.items() for name in (*names, "teacher, trial 0", "teacher, trial 1")
    }
    tested = min(p.stat().st_mtime_ns for p in run_dir.rglob("test.json"))
    assert tested > max(p.stat().st_mtime_ns for p in run_dir.rglob("cell.json"))
    assert tested > max(p.stat().st_mtime_ns for p in run_dir.rglob("frozen.json"))


def test_results_are_those_of_the_catalogs(run_dir):
    summary = read_json(f"{run_dir}/results.json")
    own = {name: read_json(f"{run_dir}/catalogs/{name}/results.json") for name in CELLS}
    assert list(summary["catalogs"]) == sorted(CELLS)
    for catalog in CELLS:
        models = {name: model["catalogs"][catalog] for name, model in summary["models"].items() if catalog in model["catalogs"]}
        by_mean = sorted(models, key=lambda name: -models[name]["test"]["recall@20"]["mean"])
        assert by_mean == sorted(models, key=lambda name: models[name]["rank"])
        for name, model in models.items():
            found = own[catalog]["models"][name]
            assert model["test"]["recall@20"] == found["test"]["recall@20"]
            records = [read_json(f"{run_dir}/catalogs/{catalog}/cells/{name}/seed-{seed}/cell.json") for seed in (0, 1)]
            assert model["seconds"]["by_seed"] == [record["seconds"] for record in records]
        trials = [read_json(f"{run_dir}/catalogs/{catalog}/search/teacher/trial-00{at}/seed-0/cell.json") for at in (0, 1)]
        budget = {"trials": 2, "seeds": 1, "seconds": pytest.approx(sum(trial["seconds"] for trial in trials))}
        assert models["teacher"]["budget"] == budget
        assert models["student"]["budget"]["trials"] == 0
    assert summary["models"]["VBPR"]["left_out"] == {"bare": "reads features"}
    assert "VBPR" not in own["bare"]["models"]
    for kind, count in (("comparisons", 3), ("ablations", 2)):
        rows = summary[kind]
        assert len(rows) == count
        assert [row["p_holm"] for row in rows] == pytest.approx(holm([row["p_t"] for row in rows]))
        assert [row["p_t"] for row in rows if row["catalog"] == "rich"] == [row["p_t"] for row in own["rich"][kind]]
        assert all(row["low"] <= row["difference"] <= row["high"] for row in rows)


def test_steps_to_a_share_of_the_metric(run_dir):
    results = read_json(f"{run_dir}/catalogs/rich/results.json")["models"]
    steps = -(-read_json(f"{run_dir}/catalogs/rich/dataset/manifest.json")["num_interactions"]["train"] // 512)
    for name, of in (("teacher", None), ("student", "teacher"), ("VBPR", None), ("slow", "teacher")):
        found = results[name]["convergence"]
        assert found["of"] == of
        for seed in (0, 1):
            goal = 0.95 * results[of or name]["validation"]["recall@20"]["by_seed"][seed]
            assert found["thresholds"][seed] == pytest.approx(goal)
            folder = f"{run_dir}/catalogs/rich/cells/{name}/seed-{seed}/training/{results[name]['stage']}"
            rows = [json.loads(line) for line in Path(folder, "metrics.jsonl").read_text().splitlines()]
            above = [at for at, row in enumerate(rows) if row["validation/recall@20"] >= goal]
            reached = found["by_seed"][seed]
            if results[name]["best_epoch"]["by_seed"][seed] == -1 and results[name]["validation"]["recall@20"]["by_seed"][seed] >= goal:
                assert reached == {"steps": 0, "seconds": 0.0}
            elif above:
                assert reached["steps"] == (above[0] + 1) * steps
            else:
                assert reached is None
    assert results["slow"]["convergence"]["by_seed"] == [None, None]
    assert "| slow | teacher |" in Path(run_dir, "catalogs/rich/report.md").read_text()
    assert "| never | never |" in Path(run_dir, "catalogs/rich/report.md").read_text()


def test_the_report_puts_the_catalogs_side_by_side(run_dir):
    text = (run_dir / "report.md").read_text()
    for part in (
        "[rich](catalogs/rich/report.md), [bare](catalogs/bare/report.md)",
        "|  | rich | bare | mean rank |",
        "- is not trained: VBPR on bare: reads features.",
        "Paired tests of recall@20",
        "all 3 rows of this table",
        "| rich: student - VBPR |",
        "| bare: slow - student |",
        "- bare: source.modalities={}, teacher.train.learning_rate=0.02, student.train.learning_rate=0.02, "
        "source.synthetic_num_items=70; teacher: teacher.kind=lightgcn",
        "| teacher | 2 trials, ",
    ):
        assert part in text, part
    plots = re.findall(r"!\[.*\]\(plots/(.+)\)", text)
    assert plots == ["models.png", "differences.png", "cost.png"]
    for plot in plots:
        assert matplotlib.image.imread(run_dir / "plots" / plot)[..., :3].std() > 0.05
    assert "# Experiment experiment, catalog bare" in (run_dir / "catalogs/bare/report.md").read_text()


def test_what_is_finished_is_not_done_again(run_dir, recipe, command):
    """A cell that is missing is trained and tested again, and nothing else."""
    import shutil

    before, lost = states(run_dir), run_dir / "catalogs" / "bare" / "cells" / "slow" / "seed-1"
    figures = read_json(f"{run_dir}/results.json")["models"]["student"]["catalogs"]["bare"]["test"]
    shutil.rmtree(lost)
    ended = command("experiment", recipe(), f"run.dir={run_dir}", *WORDS)
    assert ended.code == 0, ended.err
    after = states(run_dir)
    assert {path for path in before if after[path] != before[path]} == {path for path in before if path.startswith(f"{lost}/")}
    assert re.findall(r"\] (.*): validation", ended.out) == ["bare: slow, seed 1"]
    assert "testing 1 cells" in ended.out
    assert read_json(f"{run_dir}/results.json")["models"]["student"]["catalogs"]["bare"]["test"] == figures


@pytest.mark.parametrize(
    ("keys", "words", "message"),
    [
        ({}, [*WORDS[1:], "experiment.catalogs=[rich]"], "the catalogs bare are not in it any more"),
        (
            {},
            [*WORDS, "catalogs.bare.student.l2=0.5"],
            "catalogs.bare: .*test figures of this experiment exist.*student.l2=0.0001 .now 0.5.",
        ),
        ({"search": {}}, WORDS, "catalogs.rich: .*test figures of this experiment exist"),
    ],
)
def test_nothing_may_be_chosen_after_the_test(run_dir, recipe, command, keys, words, message):
    before = states(run_dir)
    ended = command("experiment", recipe("changed", **keys), f"run.dir={run_dir}", *words)
    assert ended.code == 2
    assert re.search(message, ended.err), ended.err
    assert states(run_dir) == before


def test_a_catalog_may_be_added_and_is_marked(run_dir, recipe, command):
    before = states(run_dir)
    catalogs = {**EXPERIMENT["catalogs"], "late": {"set": {"source.seed": 3, "source.modalities": {}}, **_like_bare()}}
    ended = command("experiment", recipe("more", catalogs=catalogs), f"run.dir={run_dir}", *WORDS)
    assert ended.code == 0, ended.err
    assert before.items() <= states(run_dir).items()
    text = (run_dir / "report.md").read_text()
    assert "|  | rich | bare | late ‡ | mean rank |" in text
    assert "‡ catalog that was added when test figures on the others were known" in text


def _like_bare() -> dict:
    return {key: EXPERIMENT["catalogs"]["bare"][key] for key in ("models", "without")}


def test_a_model_that_cannot_be_trained_on_a_catalog_is_named_before_anything_is(recipe, command, tmp_path):
    catalogs = {**EXPERIMENT["catalogs"], "bare": {"set": {"source.modalities": {}}, "without": ["VBPR"]}}
    ended = command("experiment", recipe("unfit", catalogs=catalogs), f"run.dir={tmp_path}", *WORDS)
    assert ended.code == 2
    assert re.search(r"catalogs.bare: model 'teacher': .* the dataset has no modality.*catalogs\.bare\.without", ended.err), ended.err
    assert not list(tmp_path.rglob("cell.json"))


def test_a_failed_cell_is_named_with_its_catalog_and_seed_and_the_others_are_done(recipe, command, tmp_path):
    catalogs = {**EXPERIMENT["catalogs"]}
    catalogs["bare"] = {**catalogs["bare"], "models": {"teacher": {"teacher.kind": "mf", "teacher.train.learning_rate": 1e30}}}
    ended = command("experiment", recipe("failing", catalogs=catalogs, search={}, seeds=[0]), f"run.dir={tmp_path}", *WORDS)
    assert ended.code == 1
    assert re.search(r"bare: teacher, seed 0: FloatingPointError: the loss is", ended.err), ended.err
    assert "bare: student, seed 0: its teacher failed" in ended.err
    assert all(read_json(f"{tmp_path}/catalogs/rich/cells/{name}/seed-0/cell.json")["done"] for name in CELLS["rich"])
    assert not list(tmp_path.rglob("test.json"))
    assert not list(tmp_path.rglob("frozen.json"))


def test_without_catalogs_an_experiment_lies_as_it_always_did(recipe, command, tmp_path):
    path = recipe("one", seeds=[0], search={}, ablations={})
    values = yaml.safe_load(path.read_text())
    del values["catalogs"]
    path.write_text(yaml.safe_dump(values))
    ended = command("experiment", path, f"run.dir={tmp_path}", *WORDS[1:])
    assert ended.code == 0, ended.err
    assert {p.name for p in tmp_path.iterdir()} == {
        *("dataset", "stages", "cells", "plots"),
        *("experiment.yaml", "frozen.json", "results.json", "report.md"),
    }
    assert set(yaml.safe_load((tmp_path / "experiment.yaml").read_text())["experiment"]) == {
        *("recipe", "seeds", "metric", "models", "ablations", "sweeps", "search", "compare")
    }
    assert set(read_json(f"{tmp_path}/frozen.json")) == {"definition", "added"}
    assert set(read_json(f"{tmp_path}/results.json")) == {
        *("experiment", "metric", "seeds", "threads", "list_length", "dataset", "models", "comparisons", "transferability"),
        *("ablations", "sweeps", "popularity"),
    }
    assert set(read_json(f"{tmp_path}/cells/teacher/seed-0/cell.json")) == {
        *("digest", "made_with", "done", "validation", "modalities", "num_parameters", "serving_bytes", "best_epoch", "selected_by"),
        *("epochs", "seconds", "seconds_per_epoch", "ranking_seconds"),
    }
    assert (tmp_path / "report.md").read_text().startswith("# Experiment one\n")
    assert re.search(r"^\[experiment\] teacher, seed 0: validation", ended.out, re.MULTILINE)


def test_trials_inside_a_fit_are_read_from_the_teacher_and_kept(run_dir, tmp_path):
    folder = run_dir / "catalogs" / "bare"
    dataset, cell = open_dataset(str(folder / "dataset")), folder / "cells" / "teacher" / "seed-0"
    assert trained_teacher(str(cell), dataset, None).trials is None
    manifest = cell / "teacher" / "manifest.json"
    text = manifest.read_text()
    try:
        for facts in ({"trials": 17}, {"linear": {"trials": 17}}):
            write_json(str(manifest), sealed({**json.loads(text), **facts}))
            assert trained_teacher(str(cell), dataset, None).trials == 17
    finally:
        manifest.write_text(text)
    result = read_cell(str(cell)).result
    with_trials = CellResult(**{**vars(result), "trials": 17})
    write_cell(str(tmp_path), CellRecord("x", {}, True, with_trials))
    assert read_cell(str(tmp_path)).result == with_trials
