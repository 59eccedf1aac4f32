"""A cluster without room ends in a clear error, whatever asked for the room."""

import re
import shutil
import signal
import time

import pytest
from promptmm.core.config import DistillationConfig, EvaluationConfig
from promptmm.core.errors import RunError
from promptmm.distributed.config import ClusterConfig
from promptmm.distributed.execution.evaluation import evaluate_in_tasks
from promptmm.distributed.execution.label_pool import materialise, rank_users
from promptmm.distributed.messages import EvaluationJob, LabelJob, StoredScores
from promptmm.jobs.verbs import run_verb


@pytest.fixture
def full_cluster(ray_cluster):
    """Every logical CPU is taken by an actor."""

    @ray_cluster.remote
    class Holder:
        def holds(self) -> bool:
            return True

    count = int(ray_cluster.cluster_resources()["CPU"])
    holders = [Holder.options(num_cpus=1).remote() for _ in range(count)]
    ray_cluster.get([h.holds.remote() for h in holders], timeout=120)
    yield
    for holder in holders:
        ray_cluster.kill(holder)


@pytest.fixture(params=["interrupts", "in the background"])
def sigint(request):
    """A shell starts what it puts in the background with SIGINT ignored."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler if request.param == "interrupts" else signal.SIG_IGN)
    yield
    signal.signal(signal.SIGINT, before)


def test_evaluation_and_labels(ray_cluster, full_cluster, tiny_run, sigint):
    cluster = ClusterConfig(start_timeout=2.0)
    scores = StoredScores(str(tiny_run), "student")
    with pytest.raises(RunError, match=r"start_timeout=2 seconds: the cluster has no room for an evaluation task of 1 CPU"):
        evaluate_in_tasks(EvaluationJob(f"{tiny_run}/dataset", scores, "test", EvaluationConfig(), 1), cluster)
    job = LabelJob(f"{tiny_run}/dataset", f"{tiny_run}/teacher", 0, DistillationConfig(), 256, 2, 1000, 0)
    with pytest.raises(RunError, match=r"start_timeout=2 seconds: the cluster has no room for 1 labelers of 1 CPU each"):
        materialise(job, str(tiny_run), 1, cluster, {})


def test_training_workers(ray_cluster, full_cluster, tiny_run, tiny_settings, capsys, monkeypatch, sigint):
    """Nothing of it stays: no placement group waits for the room that others give back."""
    monkeypatch.setattr("promptmm.distributed.execution.kept_workers.AGAIN_SECONDS", 1.0)
    words = ("cluster.start_timeout=6", "run.redo=train-teacher", "teacher.train.epochs=1")
    folder = shutil.copytree(tiny_run, tiny_run.parent / f"waits-{signal.getsignal(signal.SIGINT) == signal.SIG_IGN}")
    needs, room = r"1 worker of 1 CPU", r"the cluster has no room for 1 worker of 1 CPU each, it has 0 of \d+ CPUs free, 0 of \d+ GPUs free"
    with pytest.raises(RunError, match=rf"train-teacher: no worker started within cluster.start_timeout=6 seconds: {room}"):
        run_verb("train-teacher", tiny_settings(folder, *words))
    said = [line for line in capsys.readouterr().out.splitlines() if "waiting for" in line]
    assert len(said) > 1
    assert re.fullmatch(rf"\[train-teacher\] waiting for {needs} each, for \d s of at most 6; the cluster has 0 of .*", said[-1])
    deadline = time.monotonic() + 60
    while waiting_groups(ray_cluster) and time.monotonic() < deadline:
        time.sleep(0.5)
    assert not waiting_groups(ray_cluster)


def waiting_groups(ray) -> list:
    """Placement groups that have no room yet."""
    return [group for group in ray.util.placement_group_table().values() if group["state"] in ("PENDING", "RESCHEDULING")]


def test_a_cluster_that_never_has_room_is_waited_for_longer(ray_cluster, tiny_run, tiny_settings, capsys):
    """An autoscaler may add hosts; here nobody does."""
    count = int(ray_cluster.cluster_resources()["CPU"]) + 1
    folder = shutil.copytree(tiny_run, tiny_run.parent / "scales")
    words = ("cluster.start_timeout=1", "cluster.scale_timeout=7", f"cluster.num_workers={count}", "run.redo=train-teacher")
    with pytest.raises(RunError, match=rf"cluster.scale_timeout=7 seconds: the cluster has no room for {count} workers of 1 CPU each"):
        run_verb("train-teacher", tiny_settings(folder, *words))
    assert "of at most 7" in capsys.readouterr().out


def test_labelers_and_rankers_that_ask_for_gpus(ray_cluster, taught_run, tmp_path):
    """Nobody has a GPU on this cluster."""
    if ray_cluster.cluster_resources().get("GPU"):
        pytest.skip("the cluster has GPUs")
    cluster = ClusterConfig(start_timeout=2.0, gpus_per_labeler=0.5)
    distill = DistillationConfig(num_top=4)
    run = shutil.copytree(taught_run, tmp_path / "run")  # both remove what is there before they begin
    job = LabelJob(f"{run}/dataset", f"{run}/teacher", 0, distill, 256, 2, 1000, 0, device="cuda")
    for make, who in (
        (lambda: materialise(job, str(run), 1, cluster, {}), "labelers"),
        (lambda: rank_users(job.rankings, cluster), "rankers"),
    ):
        with pytest.raises(RunError, match=rf"the cluster has no room for 1 {who} of 1 CPU and 0.5 GPUs each"):
            make()
