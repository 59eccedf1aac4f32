"""Checkpoints of the sampled engine: resumed by another number of workers, damaged, and written by an earlier version."""

import contextlib
import dataclasses
import hashlib
import io
import json
import shutil

import pytest
import torch
from promptmm.core.artifact import publish_manifest, read_manifest
from promptmm.core.config import EvaluationConfig, OptimizerConfig, SamplingConfig, TeacherConfig
from promptmm.distributed.config import ClusterConfig
from promptmm.distributed.execution.local import LocalExecutor
from promptmm.distributed.messages import TeacherJob
from promptmm.jobs.runs.worker_jobs import student_job
from promptmm.jobs.settings import load_settings
from safetensors.torch import load_file, save_file

CHECKPOINTED = TeacherConfig(
    dim=6, hidden=[10], dropout=0.3, train=OptimizerConfig(epochs=5, batch_size=16, learning_rate=0.01, checkpoint_every=1)
)


def job_of(folder, epochs, cluster):
    """The teacher's job in a run folder, up to an epoch."""
    config = dataclasses.replace(CHECKPOINTED, train=dataclasses.replace(CHECKPOINTED.train, epochs=epochs))
    return TeacherJob(str(folder), EvaluationConfig(cutoffs=[5, 20]), cluster, SamplingConfig(fan_outs=[2]), 3, config=config)


@pytest.fixture(scope="module")
def new_run(dataset, graph_url):
    """Makes a run's folder after `partition`."""

    def make(folder):
        folder.mkdir()
        (folder / "dataset").symlink_to(dataset.folder)
        (folder / "graph").symlink_to(graph_url)
        return folder

    return make


@pytest.fixture(scope="module")
def one_worker(dataset):
    """Trains in a run folder up to an epoch, in this process."""
    cluster = ClusterConfig(engine="sampled", executor="local")
    return lambda folder, epochs: LocalExecutor(cluster, str(folder), dataset).run(job_of(folder, epochs, cluster))


@pytest.fixture(scope="module")
def two_workers(ray_cluster):
    """The same with two workers on one host, through Ray."""
    from promptmm.distributed.execution.ray_executor import RayExecutor

    cluster = ClusterConfig(engine="sampled", num_workers=2)

    def train(folder, epochs):
        with RayExecutor(cluster, str(folder)) as executor:
            executor.run(job_of(folder, epochs, cluster))

    return train


def rows_of(folder):
    return [json.loads(line) for line in (folder / "training" / "teacher" / "metrics.jsonl").read_text().splitlines()]


@pytest.fixture(scope="module")
def undisturbed(one_worker, new_run, tmp_path_factory):
    """Losses of five epochs of one worker."""
    folder = new_run(tmp_path_factory.mktemp("undisturbed") / "run")
    one_worker(folder, 5)
    return [row["loss"] for row in rows_of(folder)]


@pytest.fixture(scope="module")
def begun_by_two(two_workers, new_run, tmp_path_factory):
    """A run of two epochs of two workers, with a checkpoint after each."""
    folder = new_run(tmp_path_factory.mktemp("two") / "run")
    two_workers(folder, 2)
    return folder


@pytest.fixture(scope="module")
def continued_by_one(begun_by_two, one_worker, tmp_path_factory):
    """One worker goes on up to the fourth epoch; a shard of the newest checkpoint was cut short."""
    folder = tmp_path_factory.mktemp("one") / "run"
    shutil.copytree(begun_by_two, folder, symlinks=True)
    shutil.rmtree(folder / "teacher")
    shards = sorted((folder / "training" / "teacher" / "checkpoints" / "epoch-000002").glob("user-*.safetensors"))
    assert len(shards) == 2  # one of each worker
    shards[1].write_bytes(shards[1].read_bytes()[:-8])
    with contextlib.redirect_stdout(io.StringIO()) as said:
        one_worker(folder, 4)
    return folder, said.getvalue()


def test_a_damaged_shard_falls_back_to_the_checkpoint_before(continued_by_one):
    _, said = continued_by_one
    assert "checkpoint left out" in said
    assert "user-" in said
    assert "resuming after epoch 0" in said


def test_checkpoints_of_two_workers_resume_on_one(continued_by_one, undisturbed):
    """Losses to 2e-5: sums in another order are the only difference."""
    folder, _ = continued_by_one
    assert [row["loss"] for row in rows_of(folder)] == pytest.approx(undisturbed[:4], rel=2e-5)


@pytest.mark.slow
def test_checkpoints_of_one_worker_resume_on_two(continued_by_one, two_workers, undisturbed, tmp_path):
    folder = tmp_path / "run"
    shutil.copytree(continued_by_one[0], folder, symlinks=True)
    shutil.rmtree(folder / "teacher")
    two_workers(folder, 5)
    rows = rows_of(folder)
    assert [row["loss"] for row in rows] == pytest.approx(undisturbed, rel=2e-5)
    assert [row["mib_sent"] > 0 for row in rows] == [True, False, False, False, True]  # one worker sends nothing


def test_tensors_of_a_checkpoint_are_written_some_at_a_time(tmp_path, monkeypatch):
    from promptmm.distributed.loop import checkpoints as module

    monkeypatch.setattr(module, "GROUP_BYTES", 100)
    checkpoints, tensors = module.Checkpoints(str(tmp_path)), {f"t{n}": torch.full((n, 2), float(n)) for n in (20, 1, 2, 3, 0, 30)}
    writer = checkpoints.shard_writer(1)
    checkpoints.add_tensors(writer, "dense", iter(tensors.items()))
    assert len(writer.files) == 3
    checkpoints.publish(1, {}, writer.files)
    found = checkpoints.read_tensors(checkpoints.complete(lambda name: True)[1], "dense")
    assert set(found) == set(tensors)
    assert all(torch.equal(found[name], value) for name, value in tensors.items())


def rename_as_before(checkpoint, stage):
    """Gives the replicated weights of a checkpoint the names that they had before: without the prefix of their one learner."""
    manifest = read_manifest(str(checkpoint), "checkpoint")
    renamed = set()
    for path in checkpoint.glob("*.safetensors"):
        prefix = {"dense": {"teacher": "reduction.", "student": "student."}, "best": {"teacher": "reduction."}}
        prefix = prefix.get(path.name.split("-")[0], {}).get(stage)
        if prefix is None:
            continue
        tensors = load_file(str(path))
        assert all(name.startswith(prefix) for name in tensors)
        save_file({name.removeprefix(prefix): t.clone() for name, t in tensors.items()}, str(path))
        data = path.read_bytes()
        manifest["files"][path.name] = {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
        renamed |= set(tensors)
    assert renamed
    publish_manifest(str(checkpoint), "checkpoint", {"epoch": manifest["epoch"], "state": manifest["state"]}, manifest["files"])


def checkpoint_of(folder, stage, epochs):
    return folder / "training" / stage / "checkpoints" / f"epoch-{epochs:06d}"


def test_an_earlier_teachers_checkpoint_opens(one_worker, new_run, undisturbed, tmp_path):
    """It goes on bit for bit: weights, moments, steps and the best weights."""
    folder = new_run(tmp_path / "run")
    one_worker(folder, 2)
    shutil.rmtree(folder / "teacher")
    rename_as_before(checkpoint_of(folder, "teacher", 2), "teacher")
    with contextlib.redirect_stdout(io.StringIO()) as said:
        one_worker(folder, 5)
    assert "resuming after epoch 1" in said.getvalue()
    assert [row["loss"] for row in rows_of(folder)] == undisturbed


def test_an_earlier_students_checkpoint_opens(dataset, taught, graph_url, tmp_path):
    """With learnt maps and decoders, which are its replicated weights."""

    def train(folder, epochs):
        words = [f"run.dir={folder}", "student.kind=gcn", "student.dim=6", "distill.decoder=true", "distill.num_uniform=4"]
        words += ["cluster.engine=sampled", "cluster.executor=local", "sampling.fan_outs=[2]", "evaluation.cutoffs=[20]"]
        words += ["labels.mode=streamed", "student.train.batch_size=100", "student.train.checkpoint_every=1"]
        settings = load_settings(None, [*words, f"student.train.epochs={epochs}"])
        LocalExecutor(settings.cluster, settings.dir, dataset).run(student_job(settings, dataset, 0))
        return load_file(str(folder / "training" / "student" / "model" / "vectors.safetensors"))

    def begin(name):
        folder = tmp_path / name
        folder.mkdir()
        for part, target in (("dataset", dataset.folder), ("graph", graph_url), ("teacher", taught / "teacher")):
            (folder / part).symlink_to(target)
        return folder

    whole = train(begin("whole"), 4)
    train(begin("halted"), 2)
    rename_as_before(checkpoint_of(tmp_path / "halted", "student", 2), "student")
    with contextlib.redirect_stdout(io.StringIO()) as said:
        found = train(tmp_path / "halted", 4)
    assert "resuming after epoch 1" in said.getvalue()
    for name, rows in whole.items():
        assert torch.equal(found[name], rows), name


def test_the_plan_knows_what_a_step_sends(begun_by_two, dataset):
    """Ids, rows and gradients, within 25 % of what the first worker sent."""
    from promptmm.jobs.planning.plan import make_plan

    words = ["cluster.engine=sampled", "cluster.num_workers=2", "sampling.fan_outs=[2]", "teacher.dim=6", "teacher.hidden=[10]"]
    plan = make_plan(load_settings(None, [*words, "teacher.train.batch_size=16"]), dataset, None)
    num_steps = -(-dataset.manifest["num_interactions"]["train"] // 16)
    for row in rows_of(begun_by_two):
        assert plan.steps["teacher"].exchanged_bytes == pytest.approx(row["mib_sent"] * 2**20 / num_steps, rel=0.25)
