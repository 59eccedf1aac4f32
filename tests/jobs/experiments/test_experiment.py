"""`promptmm experiment` end to end on a tiny catalog: what it leaves, what it does not do twice, and what it never reads or allows."""

import json
import os
import re
import signal
import subprocess
import time
from pathlib import Path

import matplotlib.image
import numpy as np
import psutil
import pytest
from promptmm.core.agreement import Scores, agreement
from promptmm.core.errors import InputError, RunError
from promptmm.core.ranking import evaluate
from promptmm.core.storage import read_json
from promptmm.distributed.execution.local import LocalExecutor
from promptmm.graph_store.dataset import masks, open_dataset
from promptmm.jobs.experiments import cells as experiment_cells
from promptmm.jobs.experiments.grid import Grid
from promptmm.jobs.experiments.models import expand
from promptmm.jobs.experiments.settings import load_experiment
from promptmm.jobs.experiments.testing import rank_test_items
from scipy.stats import ttest_rel

from ..conftest import PROMPTMM, marked

pytestmark = [pytest.mark.whole, pytest.mark.usefixtures("ray_cluster")]
SPACE = {"teacher.train.learning_rate": [1e30, 0.01, 0.03]}  # the first diverges
EXPERIMENT = {
    "seeds": [0, 1],
    "models": {"teacher": {"stage": "teacher"}, "student": {"stage": "student", "teacher": "teacher"}},
    "ablations": {"without pair": {"of": "student", "set": {"distill.pair_weight": 0}}},
    "search": {"teacher": {"trials": 3, "space": SPACE}},
    "compare": {"transferability": {"student": "student", "teacher": "teacher", "undistilled": "without pair"}},
}
FAST = "student.train.learning_rate=0.02"


@pytest.fixture(scope="module")
def run_dir(recipe, tmp_path_factory) -> Path:
    """The folder of a finished experiment."""
    from promptmm.jobs.cli import main

    folder = tmp_path_factory.mktemp("experiment") / "run"
    handler = signal.getsignal(signal.SIGTERM)
    assert main(["experiment", str(recipe()), f"run.dir={folder}", FAST]) == 0
    signal.signal(signal.SIGTERM, handler)
    return folder


def grid(recipe_path, run_dir, *overrides) -> Grid:
    models = expand(load_experiment(str(recipe_path), [f"run.dir={run_dir}", FAST, *overrides]))
    return Grid(models, open_dataset(f"{run_dir}/dataset"))


def states(folder: Path) -> dict[str, tuple[int, str]]:
    """When each record was written, and what it says."""
    names = ("cell.json", "test.json", "test.safetensors")
    return {str(p): (p.stat().st_mtime_ns, p.read_bytes().hex()) for name in names for p in folder.rglob(name)}


def test_every_cell_has_its_record_and_no_leftovers(run_dir):
    for model in ("teacher", "student", "without-pair"):
        for seed in (0, 1):
            cell = run_dir / "cells" / model / f"seed-{seed}"
            record = read_json(str(cell / "cell.json"))
            assert record["done"]
            assert record["made_with"]["dataset"] == open_dataset(f"{run_dir}/dataset").digest
            assert record["epochs"] == 2
            assert not (cell / "labels").exists()
            assert not list(cell.rglob("checkpoints"))
            assert (cell / "teacher").exists() == (model == "teacher")
    assert len(list((run_dir / "search").rglob("cell.json"))) == 3
    assert not (run_dir / "search" / "teacher" / "ray").exists()


def test_linear_models_are_peers(recipe, tmp_path):
    """Fitted without epochs, on train and validation alone; they are tested, compared and distilled from like every other teacher."""
    from promptmm.jobs.cli import main

    alone = {"distill.list_weight": 0, "distill.embedding_weight": 0}
    models = {
        "EASE": {"stage": "teacher", "set": {"teacher.kind": "ease", "teacher.linear.trials": 3}},
        "content": {"stage": "teacher", "set": {"teacher.kind": "content", "teacher.linear.preparation": "whitened"}},
        "student": {"stage": "student", "teacher": "EASE", "set": alone},
    }
    space = {"EASE": {"trials": 2, "space": {"teacher.linear.ridge": [0.3, 3.0]}}}
    changed = {"seeds": [0], "models": models, "ablations": {}, "search": space, "compare": {"references": ["EASE"]}}
    assert main(["experiment", str(recipe("linear", **changed)), f"run.dir={tmp_path}/run", FAST]) == 0
    results = read_json(f"{tmp_path}/run/results.json")["models"]
    for name in models:
        assert results[name]["test"]["recall@20"]["mean"] > 0
    record = read_json(f"{tmp_path}/run/cells/EASE/seed-0/cell.json")
    assert (record["epochs"], record["seconds_per_epoch"], record["best_epoch"]) == (0, 0.0, -1)
    best = max(("EASE", "content"), key=lambda name: results[name]["validation"]["recall@20"]["mean"])
    goal = results[best]["validation"]["recall@20"]["mean"]
    assert results["EASE"]["as_linear"] is results["content"]["as_linear"] is None
    assert (results["EASE"]["convergence"]["fitted"], results["EASE"]["convergence"]["by_seed"]) == (True, [None])
    assert re.search(r"\| EASE \| its own \| [\d.]+ \| - \| - \|", (tmp_path / "run" / "report.md").read_text())
    assert (results["student"]["as_linear"]["of"], results["student"]["as_linear"]["thresholds"]) == (best, [goal])
    rows = [json.loads(line) for line in (tmp_path / "run/cells/student/seed-0/training/student/metrics.jsonl").read_text().splitlines()]
    above = [at for at, row in enumerate(rows) if row.get("validation/recall@20", 0) >= goal]
    reached, own = results["student"]["as_linear"]["by_seed"][0], results["student"]["validation"]["recall@20"]["mean"]
    assert (reached is None) == (own < goal)
    if above and results["student"]["best_epoch"]["mean"] != -1:
        assert reached["seconds"] == pytest.approx(sum(row["seconds"] for row in rows[: above[0] + 1]))
    assert f"## Steps to the best linear model, {best}: validation recall@20 {goal:.4f}" in (tmp_path / "run" / "report.md").read_text()


def test_the_search_chose_the_best_trial_for_the_model_and_its_students(run_dir):
    choice = read_json(str(run_dir / "choices.json"))["teacher"]
    assert [trial["settings"] for trial in choice["trials"]] == [{key: value} for key, values in SPACE.items() for value in values]
    diverged, *values = [trial["value"] for trial in choice["trials"]]
    assert diverged is None  # part of the search, and not chosen
    assert "the loss is" in read_json(f"{run_dir}/search/teacher/trial-000/seed-0/cell.json")["failed"]
    assert choice["value"] == max(values)
    assert choice["settings"] == choice["trials"][choice["trial"]]["settings"]
    rate = choice["settings"]["teacher.train.learning_rate"]
    for seed in (0, 1):
        made_with = read_json(f"{run_dir}/cells/teacher/seed-{seed}/cell.json")["made_with"]
        assert made_with["teacher"]["train"]["learning_rate"] == rate
    trial = read_json(f"{run_dir}/search/teacher/trial-{choice['trial']:03d}/seed-0/cell.json")
    assert trial["validation"] == read_json(f"{run_dir}/cells/teacher/seed-0/cell.json")["validation"]  # the same training


def test_results_are_those_of_the_trained_models(run_dir):
    results, dataset = read_json(f"{run_dir}/results.json"), open_dataset(f"{run_dir}/dataset")
    for name, folder, stage in (("teacher", "teacher", "teacher"), ("without pair", "without-pair", "student")):
        found = results["models"][name]
        for seed in (0, 1):
            model = experiment_cells.trained_model(stage, f"{run_dir}/cells/{folder}/seed-{seed}", dataset, None)
            for split in ("validation", "test"):
                expected = evaluate(model.users, model.items, *masks(dataset, split), [10, 20, 50])
                for metric in ("recall@20", "ndcg@10", "ndcg_retrieved@50"):
                    assert found[split][metric]["by_seed"][seed] == pytest.approx(expected[metric], abs=1e-6)
        values = found["test"]["recall@20"]["by_seed"]
        assert found["test"]["recall@20"]["mean"] == pytest.approx(np.mean(values))
        assert found["test"]["recall@20"]["deviation"] == pytest.approx(np.std(values, ddof=1))


def test_students_are_compared_with_their_teachers(run_dir):
    results, dataset = read_json(f"{run_dir}/results.json"), open_dataset(f"{run_dir}/dataset")
    assert results["models"]["teacher"]["agreement"] is None
    found = results["models"]["student"]["agreement"]
    for seed in (0, 1):
        models = (
            experiment_cells.trained_model(stage, f"{run_dir}/cells/{stage}/seed-{seed}", dataset, None) for stage in ("teacher", "student")
        )
        expected = agreement(*(Scores(model.users, model.items) for model in models), dataset.csr("train"), [10, 20, 50])
        assert {name: spread["by_seed"][seed] for name, spread in found.items()} == pytest.approx(expected)
    mean = found["agreement@20"]["mean"]
    assert re.search(rf"\| student / teacher \|.*\| {mean:.4f} ± ", (run_dir / "report.md").read_text())


def test_paired_tests_are_over_the_users_means(run_dir, recipe):
    from promptmm.jobs.experiments.results import _outcome

    results, models = read_json(f"{run_dir}/results.json"), grid(recipe(), run_dir).models
    row = results["comparisons"][0]
    assert (row["first"], row["second"]) == ("student", "teacher")
    student, teacher = (_outcome(models, name).of_users("recall@20").mean(0) for name in ("student", "teacher"))
    assert row["difference"] == pytest.approx((student - teacher).mean())
    assert row["p_t"] == pytest.approx(ttest_rel(student, teacher).pvalue)
    assert row["low"] < row["difference"] < row["high"]
    assert row["p_sign_flip"] == pytest.approx(row["p_t"], abs=0.05)
    ablation = results["ablations"][0]
    assert (ablation["first"], ablation["second"]) == ("without pair", "student")
    assert len(results["transferability"]["by_seed"]) == 2


def test_the_report_shows_every_model_and_plot(run_dir):
    text = (run_dir / "report.md").read_text()
    for name in ("teacher", "student", "without pair", "student - teacher", "without pair - student"):
        assert f"| {name} |" in text, name
    for part in ("Transferability", "| test pairs |", "trained parameters", "teacher.train.learning_rate="):
        assert part in text, part
    plots = re.findall(r"!\[.*\]\(plots/(.+)\)", text)
    assert plots == ["learning.png", "ablations.png", "list-length.png", "popularity.png"]
    for plot in plots:
        assert matplotlib.image.imread(run_dir / "plots" / plot)[..., :3].std() > 0.05


def test_the_same_command_again_repeats_nothing(run_dir, recipe, command):
    before = states(run_dir)
    ended = command("experiment", recipe(), f"run.dir={run_dir}", FAST)
    assert ended.code == 0
    assert states(run_dir) == before
    assert "cells, " not in ended.out


def test_another_source_is_refused_with_advice_that_an_experiment_can_follow(run_dir, recipe, command):
    before = states(run_dir)
    ended = command("experiment", recipe(), f"run.dir={run_dir}", FAST, "source.seed=9")
    assert ended.code == 2
    assert ended.err.rstrip().endswith("source.seed=0 (now 9). Use another run.dir for another experiment")
    assert states(run_dir) == before


@pytest.mark.parametrize(
    ("keys", "override", "message"),
    [
        ({"seeds": [0, 1, 2]}, FAST, "seeds=[0, 1] (now [0, 1, 2])"),
        ({}, "student.l2=0.5", "models.student.settings.student.l2=0.0001 (now 0.5); models.without pair.settings.student.l2="),
        ({"search": {"teacher": {"trials": 4, "space": SPACE}}}, FAST, "models.teacher.search.trials=3 (now 4)"),
        ({"search": {}}, FAST, "models.teacher.search={"),
        ({"ablations": {}, "compare": {}}, FAST, "models.without pair is not in the recipe any more"),
        ({"metric": "recall@10"}, FAST, "metric=recall@20 (now recall@10)"),
    ],
)
def test_nothing_may_be_chosen_after_the_test(run_dir, recipe, command, keys, override, message):
    before = states(run_dir)
    ended = command("experiment", recipe("changed", **keys), f"run.dir={run_dir}", FAST, override)
    assert ended.code == 2
    assert "test figures of this experiment exist" in ended.err
    assert message in ended.err
    assert "Use another run.dir" in ended.err
    assert states(run_dir) == before


def test_a_model_may_be_added_and_is_marked(run_dir, recipe, command):
    before = states(run_dir)
    models = {**EXPERIMENT["models"], "undistilled": {"stage": "student", "set": {"distill.use_teacher": False}}}
    ended = command("experiment", recipe("more", models=models), f"run.dir={run_dir}", FAST)
    assert ended.code == 0, ended.err
    after = states(run_dir)
    assert {path: after[path] for path in before} == before
    assert len(after) == len(before) + 6
    assert "| undistilled † |" in (run_dir / "report.md").read_text()
    assert "| student |" in (run_dir / "report.md").read_text()
    refused = command("experiment", recipe(), f"run.dir={run_dir}", FAST)
    assert "models.undistilled is not in the recipe any more" in refused.err


@pytest.fixture
def untested(run_dir, recipe, tmp_path):
    """A grid of an experiment that has its dataset only."""
    os.symlink(run_dir / "dataset", tmp_path / "dataset")
    return grid(recipe(), tmp_path)


def test_a_cell_that_asks_for_the_test_split_fails(untested, monkeypatch):
    asked = []

    def cheat(executor, job):
        asked.append(executor.dataset.has_split("test"))
        executor.dataset.csr("test")

    monkeypatch.setattr(LocalExecutor, "run", cheat)
    with pytest.raises(RunError, match="the test split is withheld from training and selection"):
        experiment_cells.run_cell(untested.cell("teacher", 0))
    assert asked == [False]
    withheld = open_dataset(untested.cell("teacher", 0).dataset_url).without("test")
    with pytest.raises(RunError, match="withheld"):
        next(withheld.pair_chunks("test"))
    assert withheld.has_split("validation")


def test_test_is_not_read_before_the_experiment_is_frozen(untested, tmp_path):
    with pytest.raises(RunError, match="test is read when every choice is final"):
        rank_test_items(untested.cell("teacher", 0), str(tmp_path))


def test_test_figures_of_other_settings_are_refused(run_dir, recipe, command, tmp_path):
    from promptmm.jobs.experiments.testing import tested

    cells = grid(recipe(), run_dir)
    cells.choices = {"teacher": {"teacher.l2": 0.5}}
    with pytest.raises(InputError, match="of a cell that was made with other settings"):
        tested(cells.cell("teacher", 0))


def test_a_failed_cell_does_not_lose_the_others(recipe, command, tmp_path):
    models = {
        "good": {"stage": "student", "set": {"distill.use_teacher": False}},
        "bad": {"stage": "teacher", "set": {"teacher.train.learning_rate": 1e30}},
        "pupil": {"stage": "student", "teacher": "bad"},
    }
    path = recipe("failing", models=models, ablations={}, search={}, compare={}, seeds=[0])
    ended = command("experiment", path, f"run.dir={tmp_path}")
    assert ended.code == 1
    assert "2 of 3 cells failed, and nothing is tested before all are done" in ended.err
    assert re.search(r"bad, seed 0: FloatingPointError: the loss is \S+ at teacher epoch 0", ended.err)
    assert "pupil, seed 0: its teacher failed" in ended.err
    assert read_json(f"{tmp_path}/cells/good/seed-0/cell.json")["done"]
    assert not list(tmp_path.rglob("test.json"))
    assert not (tmp_path / "frozen.json").exists()
    mended = recipe("failing", models={**models, "bad": {"stage": "teacher"}}, ablations={}, search={}, compare={}, seeds=[0])
    before = states(tmp_path / "cells" / "good")
    again = command("experiment", mended, f"run.dir={tmp_path}")
    assert again.code == 0, again.err
    assert "bad, seed 0: trained again, since it was trained with teacher.train.learning_rate=1e+30 (now 0.001)" in again.out
    assert before.items() <= states(tmp_path / "cells" / "good").items()


def test_prompt_tuning_beside_the_student(recipe, command, tmp_path):
    ablations = {
        "inline": {"of": "student", "set": {"distill.regime": "inline"}},
        "two rounds": {"of": "student", "set": {"distill.rounds": 2, "distill.tuning_steps": 2}},
    }
    ended = command("experiment", recipe("tuned", ablations=ablations, search={}, compare={}, seeds=[0]), f"run.dir={tmp_path}")
    assert ended.code == 0, ended.err
    assert not (tmp_path / "cells" / "inline" / "seed-0" / "teacher").exists()
    assert not (tmp_path / "cells" / "teacher" / "seed-0" / "teacher" / "rev-1").exists()  # the teacher's cell stays as it was


@pytest.mark.slow
def test_a_killed_experiment_goes_on(recipe, tmp_path):
    """Killed while a student trains, which then goes on from its checkpoint: the same results as undisturbed."""
    path = recipe("long", search={}, ablations={}, compare={})
    words = [
        PROMPTMM,
        "experiment",
        str(path),
        "student.train.epochs=300",
        "student.train.patience=300",
        "student.train.checkpoint_every=5",
    ]
    environment = {**os.environ, "PROMPTMM_TEST": f"kill-{os.getpid()}", "OMP_NUM_THREADS": "1"}

    def start(folder: str) -> subprocess.Popen:
        return subprocess.Popen([*words, f"run.dir={tmp_path}/{folder}"], stdout=subprocess.PIPE, text=True, env=environment)

    checkpoints = tmp_path / "killed" / "cells" / "student" / "seed-0" / "training" / "student" / "checkpoints"

    def stop_in_the_middle(how: signal.Signals) -> int:
        """Stops the experiment when the student has written a new checkpoint, and returns its exit code."""
        process, deadline, before = start("killed"), time.monotonic() + 200, set(checkpoints.glob("epoch-*/manifest.json"))
        while not set(checkpoints.glob("epoch-*/manifest.json")) - before:
            assert time.monotonic() < deadline
            assert process.poll() is None
            time.sleep(0.02)
        process.send_signal(how)
        code = process.wait(60)
        _, left = psutil.wait_procs(marked(environment["PROMPTMM_TEST"]), timeout=30)
        assert not left, "what trains must end with its experiment, or the next one trains the same cells beside it"
        return code

    assert stop_in_the_middle(signal.SIGKILL) == -signal.SIGKILL
    assert stop_in_the_middle(signal.SIGTERM) == 130
    teacher = states(tmp_path / "killed" / "cells" / "teacher" / "seed-0")
    assert not (checkpoints.parents[2] / "test.json").exists()
    for folder in ("killed", "whole"):
        process = start(folder)
        assert process.wait(400) == 0
    after = states(tmp_path / "killed" / "cells" / "teacher" / "seed-0")
    assert teacher.items() <= after.items()
    results = [json.loads((tmp_path / folder / "results.json").read_text()) for folder in ("killed", "whole")]
    for name in ("teacher", "student"):
        assert results[0]["models"][name]["validation"] == results[1]["models"][name]["validation"]
        assert results[0]["models"][name]["test"] == results[1]["models"][name]["test"]
