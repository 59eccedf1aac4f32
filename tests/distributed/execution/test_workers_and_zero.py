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


def train_every_stage(arguments):
    """On every worker: the same two epochs in each mode, and a resume from a state written in the mode before."""
    import dataclasses

    import torch
    from promptmm.distributed.resident import load_resident
    from promptmm.distributed.teacher_training import TeacherTrainer
    from promptmm.distributed.worker import Worker

    job, folder = arguments["job"], arguments["folder"]
    worker = Worker.current(False, 1)
    resident, found, states = load_resident(worker, job.service, job.config), {}, {}
    for stage, mode in enumerate(arguments["modes"]):
        trainer = TeacherTrainer(dataclasses.replace(job, cluster=dataclasses.replace(job.cluster, **mode)), worker, resident)
        first = trainer.train_epoch(0, None)["loss"]
        states[stage] = {name: tensor.detach().clone() for name, tensor in trainer.state().items()}
        found[stage] = [first, trainer.train_epoch(1, None)["loss"]]
        trainer.load_state(states[max(0, stage - 1)])
        found[stage].append(trainer.train_epoch(1, None)["loss"])
        weights = trainer.weights()
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
    from promptmm.distributed.launch import fit, start_progress
    from promptmm.distributed.teacher_training import TeacherJob
    from promptmm.graph_store.dgl.service import start_service

    settings, lines = tiny_settings(tiny_run, "cluster.num_workers=2"), start_progress()
    service = start_service(str(tiny_run / "graph"))
    job = TeacherJob(str(tiny_run), settings.teacher, settings.evaluation, settings.cluster, 0, service, lines)
    fit("zero", train_every_stage, {"job": job, "folder": str(tmp_path), "modes": MODES}, settings.cluster, str(tmp_path), lines)
    ray_cluster.get(service.stop.remote())
    expected, reference = torch.load(tmp_path / "stage0.pt")
    assert expected[1] < expected[0]
    for stage in range(len(MODES)):
        losses_of_stage, weights = torch.load(tmp_path / f"stage{stage}.pt")
        assert losses_of_stage == pytest.approx(expected, rel=TOLERANCE)
        assert losses_of_stage[2] == pytest.approx(losses_of_stage[1], rel=TOLERANCE)
        for name, value in weights.items():
            assert float((value - reference[name]).abs().max()) < 1e-4, (stage, name)


def test_teacher_learns(taught_run):
    loss, recall = losses(taught_run)
    assert loss[-1] < loss[0]
    assert recall[-1] > 0.1  # a random ranking of 90 items reaches about .2 at 20; this one is masked and far from untrained
