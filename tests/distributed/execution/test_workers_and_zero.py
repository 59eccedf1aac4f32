"""One worker and two, and every ZeRO stage, train the same teacher; float32 sums in another order are the only difference."""

import json

import pytest
from promptmm.jobs.verbs import run_verb
from safetensors.torch import load_file

TOLERANCE = 2e-5


def losses(folder, stage="teacher"):
    rows = [json.loads(line) for line in (folder / "training" / stage / "metrics.jsonl").read_text().splitlines()]
    return [row["loss"] for row in rows], [row["validation/recall@20"] for row in rows]


def vectors(folder):
    users, items = (load_file(str(folder / "teacher" / "rev-0" / f"{side}-00000.safetensors")) for side in ("user", "item"))
    return {**{f"user.{k}": v for k, v in users.items()}, **{f"item.{k}": v for k, v in items.items()}}


def test_two_workers_train_the_same_teacher(ray_cluster, fork_run, taught_run, tiny_settings):
    folder = fork_run("two")
    run_verb("train-teacher", tiny_settings(folder, "cluster.num_workers=2"))
    expected, found = losses(taught_run), losses(folder)
    assert len(found[0]) == 3
    assert found[0] == pytest.approx(expected[0], rel=TOLERANCE)
    # A score may move by an ulp and swap two neighbours of a list.
    assert found[1] == pytest.approx(expected[1], abs=0.02)
    reference = vectors(taught_run)
    assert set(reference) >= {"user.final", "item.final", "item.modal.visual", "user.modal.textual", "item.prompt"}
    for name, value in vectors(folder).items():
        scale = float(reference[name].abs().max())
        assert float((value - reference[name]).abs().max()) < 1e-3 * scale, name


def train_every_stage(arguments, desk):
    """On every worker: the same two epochs in each mode, and a resume from a state written in the mode before."""
    import dataclasses

    import torch
    from promptmm.distributed.engines.full.catalog import build_catalog
    from promptmm.distributed.engines.full.trainer import FullTrainer
    from promptmm.distributed.engines.learners import restore_state, whole_state_stream, whole_weights
    from promptmm.distributed.execution.ray_executor import current_worker
    from promptmm.distributed.execution.served_graph import ServedGraph
    from promptmm.distributed.loop.totals import Totals
    from promptmm.distributed.tasks.teacher import PromptTeacherTask
    from promptmm.graph_store.dataset import open_dataset

    job, folder = arguments["job"], arguments["folder"]
    worker = current_worker(dataclasses.replace(job.cluster, threads=1))
    graph = ServedGraph(arguments["service"], open_dataset(f"{job.run_url}/dataset"))
    catalog, found, states = build_catalog(worker, job.config, *graph.whole(worker, True)), {}, {}

    def train_epoch(trainer, epoch):
        totals = Totals(worker)
        trainer.start_epoch(epoch)
        for batch in trainer.batches(epoch):
            totals.add(trainer.train_step(batch, epoch), batch.size / trainer.num_examples, "a test")
        return totals.row(epoch)["loss"]

    for stage, mode in enumerate(arguments["modes"]):
        of_mode = dataclasses.replace(job, cluster=dataclasses.replace(job.cluster, **mode))
        trainer = FullTrainer(PromptTeacherTask(of_mode, worker), catalog, None)
        first = train_epoch(trainer, 0)
        states[stage] = {name: tensor.detach().clone() for name, tensor in whole_state_stream(trainer.learners)}
        found[stage] = [first, train_epoch(trainer, 1)]
        restore_state(trainer.learners, states[max(0, stage - 1)])
        found[stage].append(train_epoch(trainer, 1))
        weights = whole_weights(trainer.learners)
        if worker.is_first:
            torch.save((found[stage], weights), f"{folder}/stage{stage}.pt")
    worker.barrier()


MODES = [
    {"zero_stage": 0},
    {"zero_stage": 1},
    {"zero_stage": 2},
    {"zero_stage": 3},
    {"zero_stage": 3, "offload_optimizer": True, "offload_parameters": True, "checkpoint_activations": True},
]


@pytest.mark.slow  # test_large_towers.py trains and resumes in these modes too
def test_every_zero_stage_trains_the_same_teacher_on_two_workers(ray_cluster, tiny_run, tiny_settings, tmp_path):
    import torch
    from promptmm.distributed.execution.kept_workers import KeptWorkers
    from promptmm.graph_store.dataset import open_dataset
    from promptmm.graph_store.dgl.service import start_service
    from promptmm.jobs.runs.worker_jobs import teacher_job

    settings = tiny_settings(tiny_run, "cluster.num_workers=2")
    service = start_service(str(tiny_run / "graph"))
    job = teacher_job(settings, open_dataset(str(tiny_run / "dataset")))
    arguments = {"job": job, "service": service, "folder": str(tmp_path), "modes": MODES}

    workers = KeptWorkers(settings.cluster, str(tmp_path))
    workers.run("zero", train_every_stage, arguments)
    workers.leave()
    ray_cluster.get(service.stop.remote())
    expected, reference = torch.load(tmp_path / "stage0.pt")
    assert expected[1] < expected[0]
    for stage in range(len(MODES)):
        losses_of_stage, weights = torch.load(tmp_path / f"stage{stage}.pt")
        assert losses_of_stage == pytest.approx(expected, rel=TOLERANCE)
        assert losses_of_stage[2] == pytest.approx(losses_of_stage[1], rel=TOLERANCE)
        for name, value in weights.items():
            assert float((value - reference[name]).abs().max()) < 1e-4, (stage, name)
