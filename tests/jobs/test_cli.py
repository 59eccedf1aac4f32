"""The command line: exit codes, messages without tracebacks, help, and verbs in and out of order."""

import os
import re
import sys

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
import yaml
from promptmm.core.config import as_dict
from promptmm.core.graph import Csr
from promptmm.core.serving import load_student, write_bundle
from promptmm.core.storage import join, read_bytes, read_json
from promptmm.jobs import cli
from promptmm.jobs.runs.lease import lease
from promptmm.jobs.settings import load_settings, walk
from promptmm.jobs.verbs import VERBS


@pytest.fixture(params=["local", "memory"])
def run_dir(request, tmp_path) -> str:
    return str(tmp_path / "run") if request.param == "local" else f"memory://{tmp_path.name}-{tmp_path.parent.name}/run"


def refused(ended, *parts):
    """The command ended with code 2 and one message that has all the parts in this order."""
    assert ended.code == 2
    assert ended.err.startswith("promptmm: ")
    assert re.search(".*".join(map(re.escape, map(str, parts))), ended.err, re.DOTALL), ended.err
    assert "Traceback" not in ended.err


def bundle_at(url: str) -> None:
    """A student of 3 users and 12 items; user "b" is the first with train items."""
    train = Csr.from_pairs(torch.tensor([1, 1, 2]), torch.tensor([11, 10, 0]), 3, 12)
    items = torch.arange(12.0)[:, None]
    write_bundle(url, torch.ones(3, 1), items, ["a", "b", "7"], [f"i{n}" for n in range(12)], train, {"x": items}, {})


def test_usage(command):
    asked, bare = command("--help"), command()
    assert asked.code == 0
    assert bare.code == 2
    assert asked.out == bare.out
    for verb in VERBS:
        assert re.search(rf"^  {verb} +\S", asked.out, re.MULTILINE), verb


@pytest.mark.parametrize("verb", VERBS)
def test_help_of_a_verb_lists_its_settings(command, verb):
    ended = command(verb, "--help")
    assert ended.code == 0
    listed = re.findall(r"^  (\S+) \(", ended.out, re.MULTILINE)
    assert listed == [name for name, _, _ in walk() if name.split(".")[0] in VERBS[verb].sections and name not in VERBS[verb].excluded]
    assert command(verb, "demo", "-h").out == ended.out


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["train"], "unknown verb 'train'; the verbs are generate, prepare, partition, plan, train-teacher"),
        (["prepare", "dmeo"], "recipe 'dmeo': no such file"),
        (["prepare", "demo", "tiktok"], "'tiktok': expected key=value"),
        (["prepare", "demo", "techer.dim=8"], "unknown setting techer.dim; did you mean teacher.dim?"),
        (["prepare", "demo", "teacher.dim=big"], "teacher.dim='big'"),
        (["prepare", "demo", "distill.regime=inline", "distill.rounds=2"], "distill.rounds=2 has no meaning"),
        (["prepare", "tiktok"], "source.path is not set: source.format=diffmm needs the folder of the raw catalog"),
        (["prepare", "tiktok", "source.path=/nowhere"], "source.path=/nowhere: no such folder"),
    ],
)
def test_bad_input_ends_with_2_and_one_message(command, tmp_path, monkeypatch, words, message):
    monkeypatch.chdir(tmp_path)
    refused(command(*words), message)


@pytest.mark.parametrize(
    ("verb", "missing"),
    [
        ("partition", "prepare"),
        ("plan", "prepare"),
        ("train-teacher", "prepare"),
        ("label", "train-teacher"),
        ("distill", "prepare"),
        ("evaluate", "distill"),
        ("export", "evaluate"),
    ],
)
def test_a_verb_too_early_names_the_missing_one(command, tmp_path, verb, missing):
    ended = command(verb, f"run.dir={tmp_path}")
    refused(ended, f"{verb} needs what {missing} leaves in {tmp_path}, and {missing} has not finished there; run it, or `pipeline`, first")


@pytest.mark.whole
def test_a_teacher_on_ray_needs_the_graph_and_one_in_this_process_does_not(command, tiny, tmp_path):
    words = (tiny, f"run.dir={tmp_path}", "cluster.engine=full")
    assert command("prepare", *words).code == 0
    needed = f"train-teacher needs what partition leaves in {tmp_path}, and partition has not finished there; run it, or `pipeline`, first"
    refused(command("train-teacher", *words), needed)
    assert command("train-teacher", *words, "cluster.executor=local", "cluster.threads=1").code == 0


def test_recommend_before_export(command, tmp_path):
    refused(command("recommend", f"run.dir={tmp_path}"), f"{tmp_path}/student: no complete student here")


def test_training_needs_a_modality(command, tiny, tmp_path):
    words = (tiny, f"run.dir={tmp_path}", "source.modalities={}")
    assert command("prepare", *words).code == command("partition", *words).code == 0
    refused(command("train-teacher", *words), "the dataset has no modality", "source.modalities", "distill.use_teacher=false")


def test_verbs_of_one_process_on_any_storage(command, tiny, run_dir):
    words = (tiny, f"run.dir={run_dir}")
    prepared = command("prepare", *words)
    assert prepared.code == 0
    assert "120 users, 80 items, interactions: test 156, train 1,203, validation 156" in prepared.out
    assert "visual: 128-d float16" in prepared.out
    cut = command("partition", *words, "graph.num_parts=2")
    assert cut.code == 0
    assert re.search(
        r"\[partition\] memory: at most \d+ MiB .*\[partition\] part 0: .*\[partition\] part 1: \d+ users, \d+ items", cut.out, re.S
    )
    planned = command("plan", *words)
    assert planned.code == 0
    assert "teacher worker" in planned.out
    plan = read_json(join(run_dir, "plan.json"))
    assert f"engine: full ({plan['reason']})" in planned.out
    again = command("prepare", *words)
    assert "[prepare] already done" in again.out
    refused(command("prepare", *words, "source.seed=1"), "prepare was started here with source.seed=0 (now 1)", "run.redo=prepare")
    assert command("prepare", *words, "source.seed=1", "run.redo=prepare").code == 0
    refused(command("train-teacher", *words), "train-teacher" if "memory" in run_dir else "partition has not finished there")


@pytest.mark.parametrize("verb", ["train-teacher", "label", "distill", "evaluate", "pipeline"])
def test_verbs_of_several_processes_need_shared_storage(command, verb):
    ended = command(verb, "demo", "run.dir=memory://nowhere/run")
    refused(ended, f"run.dir=memory://nowhere/run: {verb} runs in several processes", "use a folder or an object store")


def test_a_graph_of_another_dataset(command, tiny, tmp_path):
    words = (tiny, f"run.dir={tmp_path}")
    assert command("prepare", *words).code == command("partition", *words).code == 0
    (tmp_path / "stages" / "prepare.json").unlink()
    assert command("prepare", *words, "source.seed=1").code == 0
    refused(command("train-teacher", *words), f"{tmp_path}/graph was made from another dataset/; add run.redo=partition")


def test_cutoffs_larger_than_the_catalog(command, tiny, tmp_path):
    words = (tiny, f"run.dir={tmp_path}")
    large = ("evaluation.cutoffs=[20, 100]",)
    message = "evaluation.cutoffs=[20, 100]: 100 is larger than the catalog of 80 items"
    refused(command("prepare", *words, *large), message)
    assert command("prepare", *words).code == 0
    for verb in ("plan", "pipeline"):
        refused(command(verb, *words, *large), message)


def test_recommend_k_larger_than_the_catalog(command, tiny, tmp_path):
    refused(command("pipeline", tiny, f"run.dir={tmp_path}", "recommend.k=81"), "recommend.k=81 is larger than the catalog of 80 items")
    bundle_at(str(tmp_path / "student"))
    refused(command("recommend", f"run.dir={tmp_path}", "recommend.k=13"), "k=13 is larger than the catalog of 12 items")


def test_a_plan_that_does_not_fit(command, tiny, tmp_path):
    words = (tiny, f"run.dir={tmp_path}")
    assert command("prepare", *words).code == 0
    refused(command("plan", *words, "teacher.dim=100000000"), "plan: a teacher worker needs", "Change", "teacher.dim")
    refused(command("plan", *words, "cluster.host_memory=0.1"), "plan: a teacher worker needs 0.", "the smallest host has 0.1 GiB")


def test_recommend_prints_lists(command, run_dir):
    bundle_at(join(run_dir, "student"))
    ended = command("recommend", f"run.dir={run_dir}", "recommend.k=3")
    assert ended.code == 0
    assert ended.out.splitlines() == ["top 3 for user b:", "    1. i9  (9.0000)", "    2. i8  (8.0000)", "    3. i7  (7.0000)"]
    ended = command("recommend", f"run.dir={run_dir}", "recommend.users=[b, 7]", "recommend.k=1", "recommend.exclude_seen=false")
    assert re.findall(r"user (\S+):\n +1\. (\S+)", ended.out) == [("b", "i11"), ("7", "i11")]
    refused(command("recommend", f"run.dir={run_dir}", "recommend.users=[b, c, 9]"), "unknown user ids: c, 9")


def files_of(folder) -> dict[str, tuple[int, int]]:
    """Every file and folder below a folder, with its time of change and its inode."""
    return {str(path): (path.stat().st_mtime_ns, path.stat().st_ino) for path in [folder, *folder.rglob("*")]}


def test_recommend_only_reads_and_works_beside_another_command(command, tmp_path):
    folder = tmp_path / "run"
    bundle_at(str(folder / "student"))
    words = (f"run.dir={folder}", "recommend.k=3", "run.redo=recommend")
    assert command("recommend", *words).code == 0  # large files are noted as verified
    with lease(str(folder), "distill"):
        before = files_of(folder)
        assert command("recommend", *words, f"recommend.output={tmp_path / 'lists'}", "cluster.executor=local").code == 0
        assert files_of(folder) == before
        refused(command("export", f"run.dir={folder}"), f"{folder}: promptmm distill (process {os.getpid()} on", "works in this folder")
        assert files_of(folder) == before


def test_recommend_writes_lists_of_all_users(command, run_dir, tmp_path):
    bundle_at(join(run_dir, "student"))
    output = tmp_path / "lists.parquet"
    assert command("recommend", f"run.dir={run_dir}", f"recommend.output={output}", "recommend.k=11").code == 0
    rows = pq.read_table(output).to_pylist()
    expected = load_student(join(run_dir, "student")).recommend(["a", "b", "7"], k=11)
    assert [(row["user"], row["items"], row["scores"]) for row in rows] == [(r.user, r.items, r.scores) for r in expected]
    assert [len(row["items"]) for row in rows] == [11, 10, 11]


def test_recommend_writes_a_folder(command, run_dir, tmp_path):
    bundle_at(join(run_dir, "student"))
    users, output = tmp_path / "users.txt", tmp_path / "lists"
    users.write_text("7\nb\n")
    words = (f"run.dir={run_dir}", f"recommend.output={output}", "cluster.executor=local", "recommend.k=4")
    made = command("recommend", *words)
    assert made.out == f"[recommend] 3 lists of 4 written to {output}, 1 files\n"
    assert command("recommend", f"run.dir={run_dir}", f"recommend.output={output}.parquet", "recommend.k=4").code == 0
    assert pq.read_table(output).equals(pq.read_table(f"{output}.parquet"))
    assert command("recommend", *words).out == f"[recommend] already done: {output}\n"
    refused(command("recommend", *words, "recommend.k=5"), "lists were begun here with k=4 (now 5)", "run.redo=recommend")
    others = (*words, f"recommend.users_from={users}")
    refused(command("recommend", *others), "with other users")
    assert command("recommend", *others, "run.redo=recommend").code == 0
    assert pq.read_table(output)["user"].to_pylist() == ["7", "b"]


def test_lists_in_a_folder_need_storage_that_processes_share(command, run_dir, tmp_path):
    bundle_at(join(run_dir, "student"))
    folder = f"{tmp_path}/lists" if "memory" in run_dir else "memory://nowhere/lists"
    refused(command("recommend", f"run.dir={run_dir}", f"recommend.output={folder}"), "several processes, which share no memory")


def test_a_pipeline_does_not_train_for_lists_that_another_run_has_made(command, tiny, tmp_path):
    bundle_at(str(tmp_path / "first" / "student"))
    words = (f"recommend.output={tmp_path}/lists", "cluster.executor=local", "recommend.k=2")
    assert command("recommend", f"run.dir={tmp_path}/first", *words).code == 0
    refused(command("pipeline", tiny, f"run.dir={tmp_path}/second", *words), f"{tmp_path}/lists: lists of another run are there")


def test_recommend_to_users_from_a_file(command, run_dir, tmp_path):
    bundle_at(join(run_dir, "student"))
    text, parquet, output = (tmp_path / name for name in ("users.txt", "users.parquet", "lists.parquet"))
    text.write_bytes("\ufeff7\r\nb\r\n\r\n".encode())
    pq.write_table(pa.table({"user": ["7", "b"], "since": [1, 2]}), parquet)
    for path in (text, parquet):
        assert command("recommend", f"run.dir={run_dir}", f"recommend.users_from={path}", f"recommend.output={output}").code == 0
        assert pq.read_table(output)["user"].to_pylist() == ["7", "b"]
        ended = command("recommend", f"run.dir={run_dir}", f"recommend.users_from={path}", "recommend.k=1")
        assert re.findall(r"user (\S+):", ended.out) == ["7", "b"]


def test_files_of_users_that_cannot_be_read(command, tiny, run_dir, tmp_path):
    bundle_at(join(run_dir, "student"))
    path, output = tmp_path / "users", tmp_path / "lists.parquet"
    output.write_text("earlier lists")

    def refuses(data: bytes, *said: str) -> None:
        path.write_bytes(data)
        words = (f"run.dir={run_dir}", f"recommend.users_from={path}", f"recommend.output={output}")
        refused(command("recommend", *words), *said)
        assert [output.read_text(), *(each.name for each in tmp_path.glob("*tmp*"))] == ["earlier lists"]

    def parquet(table: pa.Table) -> bytes:
        sink = pa.BufferOutputStream()
        pq.write_table(table, sink)
        return sink.getvalue().to_pybytes()

    refuses(b"b\nc\n9\n", "unknown user ids: c, 9")
    refuses(b"\n  \n", "the file has no user ids")
    refuses(b"\xff\xfe\x00", "not UTF-8 text")
    refuses("b\n".encode("utf-16-le"), "not UTF-8 text, since it has zero bytes")
    refuses(parquet(pa.table({"id": ["b"]})), "0 columns are named user among id")
    refuses(parquet(pa.table([["b"], ["7"]], ["user", "user"])), "2 columns are named user among user, user")
    refuses(parquet(pa.table({"user": ["b", None]})), "users, row 1: no id in column 'user'; fill it in or drop the row")
    refuses(parquet(pa.table({"user": [7.0]})), "column 'user' holds double; ids must be integers or strings")
    refuses(b"PAR1 and nothing else PAR1", "users: cannot be read", "may be truncated")
    whole = parquet(pa.table({"user": ["b"] * 100}))
    refuses(whole[:8] + b"\xff" * 20 + whole[28:], "users: cannot be read", "may be truncated")
    refuses(b"PAR1\nPAR17\n", "unknown user ids: PAR1, PAR17")
    refused(command("recommend", f"run.dir={run_dir}", f"recommend.users_from={tmp_path}"), "a folder, not a file")
    words = (f"run.dir={run_dir}", f"recommend.output={tmp_path}", "cluster.executor=local")
    refused(command("recommend", *words), "a folder is there with other files", "the name of a file that ends in .parquet")
    refused(command("recommend", f"run.dir={run_dir}", f"recommend.users_from={tmp_path}/none"), "none: no such file")
    refused(command("recommend", f"run.dir={run_dir}", "recommend.users_from=a", "recommend.users=[b]"), "are both set")
    path.write_text("u1\nnobody\n")
    words = (tiny, f"run.dir={tmp_path}/other", f"recommend.users_from={path}")
    refused(command("pipeline", *words), "recommend.users_from: the catalog has no users nobody")


def test_a_damaged_bundle(command, tmp_path):
    bundle_at(str(tmp_path / "student"))
    with open(tmp_path / "student" / "vectors.safetensors", "ab") as file:
        file.write(b"x")
    refused(command("recommend", f"run.dir={tmp_path}"), "vectors.safetensors: checksum does not match")


def test_the_configuration_is_saved(command, tiny, run_dir):
    words = (tiny, f"run.dir={run_dir}", "teacher.hidden=[16]")
    url = join(run_dir, "config.yaml")
    assert command("prepare", *words).code == 0
    saved = read_bytes(url)
    assert yaml.safe_load(saved) == as_dict(load_settings(str(tiny), [str(word) for word in words[1:]]))
    refused(command("prepare", *words, "source.seed=1"), "was started here with")
    assert read_bytes(url) == saved  # what was refused did not make what is here
    bundle_at(join(run_dir, "student"))
    assert command("recommend", f"run.dir={run_dir}", "recommend.k=2").code == 0
    assert read_bytes(url) == saved  # recommend only reads
    assert command("inspect", tiny, f"run.dir={run_dir}", "cluster.threads=1").code == 0
    changed = {**yaml.safe_load(saved), "cluster": {**yaml.safe_load(saved)["cluster"], "threads": 1}}
    assert yaml.safe_load(read_bytes(url)) == changed  # inspect says nothing about the teacher


def test_redo_is_not_a_property_of_the_run(command, tiny, tmp_path):
    words = (tiny, f"run.dir={tmp_path}", "run.redo=prepare")
    assert command("prepare", *words).code == 0
    assert "already done" in command("prepare", tmp_path / "config.yaml").out


ABSENT = """
import sys
class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.split('.')[0] in sys.argv[1].split(","):
            raise ModuleNotFoundError(f'no {name}', name=name)
sys.meta_path.insert(0, Absent())
from promptmm.jobs.cli import main
sys.exit(main(sys.argv[2:]))
"""


@pytest.mark.whole
@pytest.mark.parametrize(
    ("package", "extra", "words"),
    [
        ("ray", "train", ["pipeline", "demo"]),
        ("ray", "train", ["experiment", "tiktok", "source.path=/data"]),
        ("dgl", "train", ["pipeline", "demo", "cluster.executor=local", "cluster.engine=sampled"]),
        ("yaml", "local", ["pipeline", "demo"]),
        ("psutil", "local", ["pipeline", "demo"]),
    ],
)
def test_without_the_training_packages(process, tmp_path, package, extra, words):
    ended = process("-c", ABSENT, package, *words, program=(sys.executable,), timeout=120, cwd=tmp_path)
    assert ended.code == 1
    assert ended.err == f"promptmm: the package {package} is missing; training needs the extra: pip install 'promptmm[{extra}]'\n"
    assert not (tmp_path / "runs" / "demo" / "graph").exists()


def test_a_package_that_the_extra_cannot_bring(capsys, monkeypatch):
    """DGL has no release for Python 3.12, so the advice to install it could not be followed there."""

    def missing(*words):
        raise ModuleNotFoundError("no dgl", name="dgl.backend")

    monkeypatch.setattr(cli, "_run", missing)
    monkeypatch.setattr(sys, "version_info", (3, 12, 1))
    assert cli.main(["pipeline", "demo"]) == 1
    assert "use Python 3.10 or 3.11, or cluster.executor=local" in capsys.readouterr().err


@pytest.mark.whole
def test_a_run_in_one_process_needs_no_cluster_packages(process, tmp_path):
    """What the extra `local` installs is enough for the whole pipeline with the full engine."""
    words = ["pipeline", "demo", "cluster.executor=local", "teacher.train.epochs=1", "student.train.epochs=1", "labels.epochs=1"]
    sizes = ["source.synthetic_num_users=200", "source.synthetic_num_items=150", "cluster.threads=1", f"run.dir={tmp_path}/run"]
    ended = process("-c", ABSENT, "ray,dgl,deepspeed,ninja", *words, *sizes, program=(sys.executable,), timeout=300)
    assert ended.code == 0, ended.err
    results = read_json(f"{tmp_path}/run/results.json")
    assert results["student"]["test"]["recall@20"] > 0
    assert (tmp_path / "run" / "plots" / "student.png").exists()
    assert list((tmp_path / "run" / "training" / "teacher" / "tensorboard").iterdir())


@pytest.mark.whole
def test_the_installed_command(process, tmp_path):
    ended = process("evaluate", f"run.dir={tmp_path}", timeout=120)
    refused(ended, "evaluate needs what distill leaves in")
    assert process("prepare", "--help", timeout=120).code == 0


def test_a_folder_that_the_default_source_does_not_read_is_refused(command, tmp_path):
    """Who forgets the format would train on a synthetic catalog."""
    ended = command("prepare", f"source.path={tmp_path}", f"run.dir={tmp_path}/run")
    assert ended.code == 2
    assert "source.format=synthetic, the default, makes a catalog of its own and reads no folder; name the format" in ended.err
    assert not (tmp_path / "run" / "dataset").exists()
