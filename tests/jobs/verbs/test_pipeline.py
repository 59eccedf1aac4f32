"""The main job end to end in processes of its own: Ray, DGL servers, DeepSpeed and Ray Data on a tiny catalog."""

import json
import logging
import re
import sys
import uuid
from dataclasses import dataclass
from pathlib import Path

import matplotlib.image
import numpy as np
import pytest
from promptmm.core import load_student, write_lists
from promptmm.core.agreement import Scores, agreement
from promptmm.core.artifact import read_manifest
from promptmm.core.storage import filesystem, join, read_bytes, read_json
from promptmm.graph_store.dataset import open_dataset
from promptmm.jobs.runs.models import trained_student, trained_teacher
from promptmm.jobs.sections import STAGES
from promptmm.jobs.settings import load_settings

from ..conftest import Ended

pytestmark = pytest.mark.whole
METRICS = {
    f"{metric}@{k}"
    for metric in ("recall", "ndcg", "ndcg_retrieved", "precision", "hit_ratio", "mrr", "map", "coverage")
    for k in (10, 20, 50)
}  # fmt: skip
MODEL = {"validation", "test", "num_parameters", "serving_bytes", "best_epoch", "selected_by"}
NUM_USERS, NUM_ITEMS, DIM, DIMS = 120, 80, 8, {"visual": 128, "textual": 96, "acoustic": 64}


@dataclass(frozen=True)
class Run:
    """A finished pipeline."""

    dir: str
    ended: Ended

    @property
    def results(self) -> dict:
        return read_json(join(self.dir, "results.json"))


def left_nothing(ended: Ended) -> None:
    assert ended.processes == []
    assert ended.segments == []
    assert ended.files == []


def trained(ended: Ended) -> None:
    assert ended.code == 0, f"{ended.out[-3000:]}\n{ended.err[-6000:]}"


@pytest.fixture(scope="module")
def local(process, tiny, tmp_path_factory) -> Run:
    """`promptmm pipeline` into a folder."""
    folder = str(tmp_path_factory.mktemp("run") / "tiny")
    ended = process("pipeline", tiny, f"run.dir={folder}")
    trained(ended)
    return Run(folder, ended)


def test_results(local):
    results = local.results
    assert set(results) == {"teacher", "student", "timings", "dataset", "seed"}
    teacher, student = results["teacher"], results["student"]
    assert set(teacher) == MODEL
    assert set(student) == MODEL | {"parameter_ratio", "serving_ratio", "agreement"}
    for model in (teacher, student):
        for split in ("validation", "test"):
            assert set(model[split]) == METRICS
            assert all(0 <= value <= 1 for value in model[split].values())
            assert model[split]["recall@10"] <= model[split]["recall@20"] <= model[split]["recall@50"]
            assert model[split]["recall@50"] > 0
        assert model["selected_by"] == "recall@20"
        assert model["best_epoch"] in (0, 1)


def test_sizes_and_ratios(local):
    teacher, student = local.results["teacher"], local.results["student"]
    tables = (NUM_USERS + NUM_ITEMS) * DIM
    towers = sum(dim * DIM + DIM for dim in DIMS.values()) + 2 * (DIM * DIM + DIM)
    assert teacher["num_parameters"] == tables + towers
    assert student["num_parameters"] == tables
    assert teacher["serving_bytes"] == 4 * (tables + towers + NUM_ITEMS * sum(DIMS.values()))
    assert student["serving_bytes"] == 4 * tables
    assert student["parameter_ratio"] == student["num_parameters"] / teacher["num_parameters"]
    assert student["serving_ratio"] == student["serving_bytes"] / teacher["serving_bytes"]


def test_dataset_and_timings(local):
    dataset = local.results["dataset"]
    assert (dataset["num_users"], dataset["num_items"]) == (NUM_USERS, NUM_ITEMS)
    assert dataset["num_interactions"] == {"train": 1203, "validation": 156, "test": 156}
    assert {name: info["dim"] for name, info in dataset["modalities"].items()} == DIMS
    assert set(local.results["timings"]) == set(STAGES) - {"plan", "recommend"}
    assert all(seconds > 0 for seconds in local.results["timings"].values())


def test_the_best_epoch_is_the_best_of_its_history(local):
    for stage, model in (("teacher", local.results["teacher"]), ("student", local.results["student"])):
        text = (Path(local.dir) / "training" / stage / "metrics.jsonl").read_text()
        history = [json.loads(line) for line in text.splitlines()]
        assert [row["epoch"] for row in history] == [0, 1]
        best = max(history, key=lambda row: row["validation/recall@20"])
        assert model["best_epoch"] == best["epoch"]
        assert model["validation"]["recall@20"] == pytest.approx(best["validation/recall@20"], abs=1e-6)
        assert all(np.isfinite(value) for row in history for value in row.values())
        assert list((Path(local.dir) / "training" / stage / "tensorboard").glob("events.*"))


def test_plots(local):
    for stage in ("teacher", "student"):
        path = Path(local.dir) / "plots" / f"{stage}.png"
        assert path.stat().st_size > 10_000
        picture = matplotlib.image.imread(path)  # [height, width, channels]
        assert min(picture.shape[:2]) > 300
        assert picture[..., :3].std() > 0.05


def shown_rows(text: str) -> dict[str, list[str]]:
    """Cells of a Markdown table by the first column."""
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines() if line.startswith("| ")]
    return {name: cells for name, *cells in rows}


@pytest.mark.parametrize("where", ["terminal", "report.md"])
def test_the_table(local, where):
    text = local.ended.out if where == "terminal" else (Path(local.dir) / "report.md").read_text()
    rows = shown_rows(text)
    models = [local.results["teacher"], local.results["student"]]
    assert rows[""] == ["teacher", "student"]
    for split in ("validation", "test"):
        for metric in ("recall@20", "ndcg@50"):
            assert rows[f"{split} {metric}"] == [f"{model[split][metric]:.4f}" for model in models]
    assert rows["trained parameters"] == [f"{model['num_parameters']:,}" for model in models]
    assert rows["bytes to serve, student / teacher"] == ["", f"{models[1]['serving_ratio']:.1%}"]
    assert rows["agreement@20 with the teacher"] == ["", f"{models[1]['agreement']['agreement@20']:.1%}"]
    dataset = open_dataset(join(local.dir, "dataset"))
    models_of_run = trained_teacher(local.dir, dataset, None), trained_student(local.dir, None)
    of_teacher, of_student = (Scores(model.users, model.items) for model in models_of_run)
    assert models[1]["agreement"] == pytest.approx(agreement(of_teacher, of_student, dataset.csr("train"), [10, 20, 50]))


def test_the_report_shows_the_plots(local):
    report = (Path(local.dir) / "report.md").read_text()
    shown = re.findall(r"!\[.*\]\((.+)\)", report)
    assert shown == ["plots/teacher.png", "plots/student.png"]
    assert all((Path(local.dir) / name).is_file() for name in shown)


def test_the_bundle_recommends_what_was_printed(local):
    student = load_student(join(local.dir, "student"))
    user = re.search(r"^top 10 for user (\S+):$", local.ended.out, re.MULTILINE)
    assert user is not None
    printed = re.findall(r"^ +(\d+)\. (i\d+)  \((-?\d+\.\d{4})\)$", local.ended.out, re.MULTILINE)
    found = student.recommend([user[1]], k=10)[0]
    assert printed == [(str(place), item, f"{score:.4f}") for place, (item, score) in enumerate(zip(found.items, found.scores), 1)]


def test_the_bundle_knows_where_it_comes_from(local):
    manifest = load_student(join(local.dir, "student")).manifest
    assert set(manifest["lineage"]) == {"dataset", "teacher", "labels", "student_model"}
    assert manifest["metrics"]["test"] == local.results["student"]["test"]
    assert manifest["config"]["dim"] == DIM
    assert manifest["seed"] == 0


def test_progress_on_the_terminal(local):
    for verb in set(STAGES) - {"plan", "recommend"}:
        assert f"[{verb}] done in" in local.ended.out
    for stage in ("teacher", "student"):
        assert re.search(rf"^\[{stage}\] epoch   1  loss \d", local.ended.out, re.MULTILINE)
    assert "Traceback" not in local.ended.err


def test_nothing_is_left_behind(local):
    left_nothing(local.ended)


def test_the_same_command_again_does_nothing(local, process, tiny):
    before = {path: path.read_bytes() for path in Path(local.dir).rglob("*") if path.is_file()}
    ended = process("pipeline", tiny, f"run.dir={local.dir}")
    trained(ended)
    assert ended.out.count("] already done") == len(STAGES) - 2
    assert "] done in" not in ended.out
    assert shown_rows(ended.out) == shown_rows(local.ended.out)
    kept = {path: path.read_bytes() for path in Path(local.dir).rglob("*") if path.is_file()}
    assert set(kept) == set(before)
    assert [str(path) for path in before if path.suffix != ".png" and kept[path] != before[path]] == []
    left_nothing(ended)


def test_other_settings_in_the_same_folder_are_refused(local, command, tiny):
    ended = command("train-teacher", tiny, f"run.dir={local.dir}", "teacher.l2=0.5")
    assert ended.code == 2
    assert "train-teacher was started here with teacher.l2=0.0001 (now 0.5)" in ended.err
    assert load_settings(join(local.dir, "config.yaml"), []) == load_settings(str(tiny), [f"run.dir={local.dir}"])


def test_export_and_recommend_in_memory(local, command, tiny):
    """The verbs of one process work on any file system: a copy of the run in memory is exported again."""
    url = f"memory://{uuid.uuid4().hex}"
    fs, path = filesystem(url)
    fs.put(local.dir, path, recursive=True)
    assert command("export", tiny, f"run.dir={url}", "run.redo=export").code == 0
    again, first = read_manifest(join(url, "student"), "student"), read_manifest(join(local.dir, "student"), "student")
    assert again == first
    assert command("recommend", tiny, f"run.dir={url}", "recommend.users=[u5]", f"recommend.output={url}/lists.parquet").code == 0
    assert read_bytes(join(url, "lists.parquet"))[:4] == b"PAR1"


ONE_BY_ONE = """
import sys
from promptmm.distributed.config import ClusterConfig
from promptmm.distributed.execution.session import ray_session
from promptmm.jobs.cli import main
from promptmm.jobs.sections import STAGES
with ray_session(ClusterConfig()):
    for verb in STAGES:
        code = main([verb, *sys.argv[1:]])
        if code:
            sys.exit(code)
"""


@pytest.mark.slow
def test_the_verbs_one_by_one_give_the_same_bits(local, process, tiny, tmp_path):
    """Same seed, another folder, every verb by itself."""
    ended = process(tiny, f"run.dir={tmp_path}", program=(sys.executable, "-c", ONE_BY_ONE))
    trained(ended)
    for name in ("teacher/weights.safetensors", "teacher/rev-0/item-00000.safetensors", "student/vectors.safetensors"):
        assert (tmp_path / name).read_bytes() == (Path(local.dir) / name).read_bytes(), name
    assert read_json(str(tmp_path / "results.json"))["student"] == local.results["student"]
    left_nothing(ended)


@pytest.fixture
def bucket(monkeypatch, caplog):
    """An S3-compatible store on this machine: (URL of an empty bucket, environment of a process that uses it)."""
    pytest.importorskip("s3fs")
    server = pytest.importorskip("moto.server").ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    import fsspec

    caplog.set_level(logging.ERROR, "werkzeug")  # a line a request
    server.start()
    host, port = server.get_host_and_port()
    environment = {
        "AWS_ACCESS_KEY_ID": "testing",
        "AWS_SECRET_ACCESS_KEY": "testing",
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_EC2_METADATA_DISABLED": "true",
        "NO_PROXY": host,
        "FSSPEC_S3_ENDPOINT_URL": f"http://{host}:{port}",
    }
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setitem(fsspec.config.conf, "s3", {"endpoint_url": environment["FSSPEC_S3_ENDPOINT_URL"]})
    fsspec.filesystem("s3").mkdir("bucket")
    yield "s3://bucket", environment
    fsspec.get_filesystem_class("s3").clear_instance_cache()
    server.stop()


def test_a_run_on_an_object_store(local, bucket, process, tiny, tmp_path):
    """Everything a run makes is in the bucket, checkpoints included, and the result is that of a local run."""
    url, environment = bucket
    words = (f"run.dir={url}/run", "teacher.train.checkpoint_every=1", "student.train.checkpoint_every=1")
    ended = process("pipeline", tiny, *words, **environment)
    trained(ended)
    left_nothing(ended)
    results = read_json(f"{url}/run/results.json")
    assert results["teacher"]["test"] == local.results["teacher"]["test"]
    assert results["student"]["test"] == local.results["student"]["test"]
    student = load_student(f"{url}/run/student", cache_dir=str(tmp_path))
    assert student.recommend(["u1", "u2"]) == load_student(join(local.dir, "student")).recommend(["u1", "u2"])
    lists = [write_lists(f"{url}/run/student", f"{url}/lists", ["u1", "u2"], 5, cache_dir=str(tmp_path)) for _ in range(2)]
    assert lists == [2, 0]  # the second call finds them complete
    stored = [name.removeprefix("bucket/run/") for name in filesystem(url)[0].find("bucket/run")]
    for expected in (
        "config.yaml",
        "report.md",
        "plots/teacher.png",
        "plots/student.png",
        "training/teacher/checkpoints/epoch-000002/manifest.json",
        "training/student/checkpoints/epoch-000002/state.safetensors",
    ):
        assert expected in stored
    assert any(name.startswith("training/student/tensorboard/events.") for name in stored)


@pytest.fixture(scope="module")
def bare_source(tmp_path_factory) -> Path:
    """A LightGCN folder: no features, no validation split."""
    folder = tmp_path_factory.mktemp("source")
    generator = np.random.default_rng(0)
    lines: dict[str, list[str]] = {"train": [], "test": []}
    for user in range(50):
        items = generator.choice(60, 8, replace=False).tolist()
        lines["train"].append(" ".join(map(str, [user, *items[:6]])))
        lines["test"].append(" ".join(map(str, [user, *items[6:]])))
    for name, rows in lines.items():
        (folder / f"{name}.txt").write_text("\n".join(rows) + "\n")
    return folder


@pytest.fixture(scope="module")
def bare(process, tiny, bare_source, tmp_path_factory) -> Run:
    """`promptmm pipeline` on a catalog without modalities and without a validation split."""
    folder = str(tmp_path_factory.mktemp("run") / "bare")
    words = ("source.format=lightgcn", f"source.path={bare_source}", "source.modalities={}", "student.train.epochs=3")
    ended = process("pipeline", tiny, f"run.dir={folder}", *words, "student.train.patience=1")
    trained(ended)
    return Run(folder, ended)


def test_without_modalities_the_student_trains_alone(bare):
    results = bare.results
    assert results["teacher"] is None
    assert results["student"]["parameter_ratio"] is None
    assert results["student"]["serving_ratio"] is None
    assert results["student"]["agreement"] is None
    assert results["dataset"]["modalities"] == {}
    assert set(results["timings"]) == {"prepare", "distill", "evaluate", "export"}
    assert "the dataset has no modality, so there is no teacher: the student trains alone" in bare.ended.out
    assert shown_rows(bare.ended.out)[""] == ["student"]
    assert not (Path(bare.dir) / "teacher").exists()
    assert sorted(p.name for p in (Path(bare.dir) / "plots").iterdir()) == ["student.png"]
    assert set(load_student(join(bare.dir, "student")).manifest["lineage"]) == {"dataset", "student_model"}
    left_nothing(bare.ended)


def test_without_validation_the_epochs_are_fixed(bare):
    student = bare.results["student"]
    assert student["best_epoch"] == 2
    assert student["selected_by"] == "no validation split: the last epoch"
    assert "validation" not in student
    assert set(student["test"]) == METRICS
    assert "student: no validation split, so no selection: epoch 2, the last one" in bare.ended.out
    assert "[prepare] no validation split: no epoch, no setting" in bare.ended.out
    history = (Path(bare.dir) / "training" / "student" / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(row)["epoch"] for row in history] == [0, 1, 2]


def test_without_a_teacher_its_verbs_say_so(bare, command, tiny, bare_source):
    words = (tiny, f"run.dir={bare.dir}", "source.format=lightgcn", f"source.path={bare_source}", "source.modalities={}")
    for verb, message in (
        ("train-teacher", "the dataset has no modality"),
        ("label", "train-teacher has not finished"),
    ):
        ended = command(verb, *words)
        assert ended.code == 2
        assert message in ended.err


@pytest.mark.slow
def test_without_modalities_a_lightgcn_can_teach(command, tiny, bare_source, tmp_path):
    """The whole pipeline in this process, with its graph servers, workers and labelers."""
    words = (tiny, f"run.dir={tmp_path}/run", "source.format=lightgcn", f"source.path={bare_source}", "source.modalities={}")
    kind = ("teacher.kind=lightgcn", "distill.list_weight=0", "distill.embedding_weight=0")
    ended = command("pipeline", *words, *kind)
    assert ended.code == 0, ended.err
    results = json.loads((tmp_path / "run" / "results.json").read_text())
    teacher = results["teacher"]
    assert teacher["num_parameters"] == 8 * (50 + 60)
    assert teacher["serving_bytes"] == 4 * teacher["num_parameters"]  # no features
    assert results["student"]["serving_ratio"] == 1
    assert read_json(join(str(tmp_path / "run"), "plan.json"))["engine"] == "full"
    assert "teacher" in load_student(f"{tmp_path}/run/student").manifest["lineage"]
