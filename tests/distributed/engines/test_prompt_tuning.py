"""Prompt-tuning between rounds: the task gives the same step in both engines with all neighbours, and the prompt the gradient of inline."""

import dataclasses
from types import SimpleNamespace

import pytest
import torch
from promptmm.core.config import EvaluationConfig, SamplingConfig
from promptmm.core.sides import SIDES
from promptmm.distributed.artifacts.teacher import open_weights, read_prompt, read_revision

CONCAT = {"fusion": "concat", "modality_layers": 0, "whiten": True, "leave_one_out": True, "feature_temperature": 0.2}
VARIANTS = {
    "default": ({}, []),
    "features beside": (CONCAT, ["distill.user_balance=0.5", "distill.score_weight=0.5"]),
    "softmax over items": ({"loss": "softmax", "softmax_items": 30, "examples": "users"}, ["student.examples=users"]),
    "users balanced": ({"user_balance": 0.5, "modality_layers": 2, "layers": 1}, ["distill.decoder=true"]),
    "the teacher's top": ({"id_prompt_weight": 0.0, "prompt_loss_weight": 0.0}, ["distill.num_top=3", "distill.top_depth=8"]),
    "no anchor": ({}, ["distill.anchor_weight=0", "student.dim=5"]),
}


@pytest.fixture(scope="module")
def taught_by(dataset, teacher_config, tmp_path_factory):
    """Makes a run's folder with a teacher that was trained for an epoch, once for its settings."""
    from promptmm.distributed.config import ClusterConfig
    from promptmm.distributed.execution.local import LocalExecutor
    from promptmm.distributed.messages import TeacherJob

    folders = {}

    def make(settings):
        config = teacher_config(**settings)
        config = dataclasses.replace(config, train=dataclasses.replace(config.train, epochs=1))
        if str(config) not in folders:
            folder, cluster = tmp_path_factory.mktemp("taught") / "run", ClusterConfig(executor="local", engine="full")
            folder.mkdir()
            (folder / "dataset").symlink_to(dataset.folder)
            job = TeacherJob(str(folder), EvaluationConfig(cutoffs=[5, 20]), cluster, SamplingConfig(), 3, config=config)
            LocalExecutor(cluster, str(folder), dataset).run(job)
            folders[str(config)] = folder
        return folders[str(config)]

    return make


@pytest.fixture
def tuners(dataset, graph_url, worker, student_settings, taught_by):
    """Makes trainers that tune the prompt in the sampled engine and in the full one, and one of a student beside a resident teacher.

    The student that stays fixed in the first two is the third one at its start, before any epoch.
    """
    from promptmm.distributed.engines.full.catalog import build_catalog
    from promptmm.distributed.engines.full.trainer import FullTrainer
    from promptmm.distributed.engines.sampled.trainer import SampledTrainer
    from promptmm.distributed.execution.dataset_graph import DatasetGraph
    from promptmm.distributed.labels.rankings import open_rankings, rank_here
    from promptmm.distributed.run_job import student_task
    from promptmm.distributed.surroundings import Surroundings
    from promptmm.distributed.tasks.prompt_tuning import FixedStudent, PromptTuningTask
    from promptmm.distributed.tasks.tuning import PromptTuner, resident_config
    from promptmm.graph_store.dgl.standalone import connect_alone
    from promptmm.jobs.runs.worker_jobs import student_job

    def make(teacher, *overrides):
        settings = student_settings("distill.tuning_steps=3", *overrides, f"run.dir={taught_by(teacher)}")
        job, graph = student_job(settings, dataset, 0), DatasetGraph(dataset)
        of_full = dataclasses.replace(job, cluster=dataclasses.replace(job.cluster, engine="full"))
        catalog = build_catalog(worker, resident_config(job), *graph.whole(worker, True))
        task = student_task(of_full, worker, Surroundings(dataset, graph, None), PromptTuner.load(of_full, catalog, worker))
        inline = FullTrainer(task, catalog, None)
        users, items = (rows.detach().clone() for rows in task.vectors(inline.view())["final"])
        student, stored = FixedStudent(task, (users.__getitem__, items.__getitem__), 0), None
        if job.label_job().rankings is not None:
            rank_here(job.label_job().rankings, dataset)
            stored = open_rankings(job.label_job().rankings, dataset).__getitem__
        sampled = PromptTuningTask(job, worker, student, stored)
        full = FullTrainer(PromptTuningTask(of_full, worker, student), catalog, None)
        return SimpleNamespace(
            sampled=SampledTrainer(sampled, job, connect_alone(graph_url), worker, None), full=full, inline=inline, student=student
        )

    return make


def prompt_gradient(prompt):
    found = {name: p.grad.clone() for name, p in prompt.named_parameters() if p.grad is not None}
    prompt.zero_grad()
    return found


def first_terms(trainer, parity):
    """Terms and the prompt's gradient of a tuning trainer's first step."""
    trainer.start_epoch(0)
    batch = parity.batch(trainer, 0, 0)
    terms = trainer.loss_terms(batch, 0)[0] if hasattr(trainer, "loss_terms") else trainer.task.terms(trainer.view((0, 0)), batch)
    parity.total(terms).backward()
    return batch, terms, prompt_gradient(trainer.task.module.prompt)


@pytest.mark.parametrize("variant", VARIANTS)
def test_the_first_step_is_the_full_engines_and_the_gradient_that_of_inline(parity, tuners, variant):
    """Terms to 1e-5, the prompt's gradient to 1e-5 of its largest entry; the inline step has the student's own terms beside them."""
    teacher, words = VARIANTS[variant]
    made = tuners(teacher, *words)
    whole = parity.batch(made.inline, 0, 0)
    inline = made.inline.task.terms(made.inline.view((0, 0)), whole)
    parity.total(inline).backward()
    wanted = prompt_gradient(made.inline.task.tuner.reduction.prompt)
    for trainer in (made.full, made.sampled):
        batch, terms, found = first_terms(trainer, parity)
        own = getattr(batch, "own", batch)
        ids = (batch.blocks.users[own.users], batch.blocks.items[own.candidates]) if own is not batch else (own.users, own.candidates)
        assert torch.equal(ids[0], whole.users)
        assert torch.equal(ids[1], whole.labels.candidates)
        assert set(terms) == set(inline) - {"bpr", "l2"}
        for name, value in terms.items():
            torch.testing.assert_close(value, inline[name], rtol=1e-5, atol=1e-7)
        assert set(found) == set(wanted)
        for name, grad in found.items():
            assert bool(grad.any()) or not bool(wanted[name].any())
            parity.close(grad, wanted[name])
        assert sum(bool(grad.any()) for grad in found.values()) >= 2
        assert all(not decoder.requires_grad for decoder in made.student.decoders.parameters())


def test_both_engines_write_the_same_next_revision(tuners):
    """The prompt to a tenth of a step's size, and the vectors that are inferred layer by layer; all else of the teacher stays."""
    from promptmm.distributed.tasks.prompt_tuning import tune_prompt

    made, found, said = tuners({}, "distill.num_top=2", "distill.top_depth=5"), [], []
    url = made.sampled.task.job.teacher_url
    ids = [rows.whole().clone() for rows in open_weights(url)[1]]
    for trainer in (made.full, made.sampled):
        tune_prompt(trainer.task, trainer, said.append)
        found.append(read_revision(url, 1))
    assert said == ["[student] prompt tuned for 3 steps: revision 1 written"] * 2
    before, (full, sampled) = read_prompt(url, 0), found
    for name, weights in sampled.prompt.items():
        torch.testing.assert_close(weights, full.prompt[name], rtol=0, atol=1e-4)
        assert not torch.equal(weights, before[name])
    for name in ("user", "item", "prompt_user", "prompt_item"):
        torch.testing.assert_close(getattr(sampled.vectors, name), getattr(full.vectors, name), rtol=1e-3, atol=1e-4)
    for modality, rows in sampled.vectors.modal_item.items():
        torch.testing.assert_close(rows, full.vectors.modal_item[modality], rtol=1e-3, atol=1e-4)
    for side in SIDES:
        assert set(made.sampled.ids[side].tables) == {"weight"}  # frozen rows have no optimizer
        places = torch.arange(len(made.sampled.ids[side].tables["weight"]))
        own_ids = made.sampled.connection.own_ids(side)
        assert torch.equal(made.sampled.ids[side].read(places), ids[side][own_ids])


def test_a_feature_decay_is_estimated_on_as_many_items_as_a_step_has_examples(tuners):
    made = tuners({}, "student.train.batch_size=50")
    batch = next(made.sampled.batches(0))
    assert batch.own.num_decayed == 50
    assert batch.own.further.numel() == 50
    assert made.full.task.decayed_items(0, 0, 1)[1] is None


@pytest.mark.parametrize(("further", "epochs"), [(None, []), (-1, [3]), (0, [3]), (1, [3, 4])])
def test_steps_go_on_in_the_order_of_the_epochs_that_follow(tuners, dataset, further, epochs):
    """The batches end with the steps, so that no worker makes one that the others do not."""
    num_steps = -(-dataset.manifest["num_interactions"]["train"] // 100)
    steps = 0 if further is None else num_steps + further
    made = tuners({}, f"distill.tuning_steps={steps}")
    task = made.sampled.task
    task.student = dataclasses.replace(task.student, epochs=3)
    assert made.sampled.num_steps == num_steps
    assert list(task.epochs) == epochs
    assert sum(len(list(made.sampled.batches(epoch))) for epoch in task.epochs) == steps
