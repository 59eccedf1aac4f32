"""Runs with candidates that the student ranks high: in every regime, on two workers, and going on after a kill."""

import os
import signal
import subprocess
import sys

import pytest
import torch
from promptmm.core.errors import InputError
from promptmm.jobs.verbs import run_verb
from safetensors.torch import load_file

from .test_student_regimes import rows, student

LOCAL = "cluster.executor=local"
OWN = ["distill.num_student=3", "distill.student_depth=10"]
KILLER = """
import os, signal, sys
from promptmm.distributed.engines.full.trainer import FullTrainer
from promptmm.jobs.cli import main
step = FullTrainer.train_step
def killed(self, batch, epoch):
    if (epoch, batch.step) == (4, 2):
        os.kill(os.getpid(), signal.SIGKILL)
    return step(self, batch, epoch)
FullTrainer.train_step = killed
main(sys.argv[1:])
"""


@pytest.fixture(scope="module")
def reference(taught_run, tiny_settings, tmp_path_factory):
    """The student of one worker in this process, from materialised labels, whose epochs come again."""
    import shutil

    folder = tmp_path_factory.mktemp("own") / "run"
    shutil.copytree(taught_run, folder)
    run_verb("distill", tiny_settings(folder, LOCAL, *OWN, "student.train.epochs=6", "student.train.checkpoint_every=3"))
    return folder


@pytest.mark.whole
def test_a_killed_run_ranks_the_same(reference, fork_run, taught_run):
    """In the middle of an epoch, after a checkpoint that is not the newest epoch's: the same bits."""
    folder = fork_run("killed", taught_run)
    words = ["distill", str(folder / "config.yaml"), LOCAL, *OWN, "student.train.epochs=6", "student.train.checkpoint_every=3"]
    words.append(f"run.dir={folder}")
    killed = subprocess.run([sys.executable, "-c", KILLER, *words], capture_output=True, text=True, check=False, env=os.environ)
    assert killed.returncode == -signal.SIGKILL, killed.stdout + killed.stderr
    assert not (folder / "training" / "student" / "model").exists()
    again = subprocess.run([sys.executable, "-m", "promptmm.jobs.cli", *words], capture_output=True, text=True, check=False)
    assert again.returncode == 0, again.stdout + again.stderr
    assert "resuming after epoch 2" in again.stdout
    expected, found = student(reference), student(folder)
    assert all(torch.equal(found[name], expected[name]) for name in ("user", "item"))
    assert [row["loss"] for row in rows(folder)] == [row["loss"] for row in rows(reference)]


def test_inline_and_rounds_take_them_too(reference, fork_run, taught_run, tiny_settings):
    """Lists of a resident teacher have them, and the prompt is tuned on them."""
    losses = {}
    for name, more in {
        "inline": ["distill.regime=inline"],
        "inline without": ["distill.regime=inline", "distill.num_student=0"],
        "rounds": ["distill.rounds=2", "distill.tuning_steps=3"],
        "rounds without": ["distill.rounds=2", "distill.tuning_steps=3", "distill.num_student=0"],
    }.items():
        folder = fork_run(name, taught_run)
        run_verb("distill", tiny_settings(folder, LOCAL, *OWN, *more, "student.train.epochs=4"))
        losses[name] = [row["loss/pair"] for row in rows(folder)]
        prompt = load_file(str(folder / "teacher" / "rev-1" / "prompt.safetensors"))
        losses[name].append(float(prompt["item_weight"].double().square().sum()))
    assert losses["inline"][:-1] != losses["inline without"][:-1]
    assert losses["inline"][0] == pytest.approx(rows(reference)[0]["loss/pair"], rel=0.02)  # the prompt has moved little by then
    assert losses["rounds"][-1] != losses["rounds without"][-1]


@pytest.mark.slow
def test_two_workers_share_the_ranking(ray_cluster, fork_run, taught_run, tiny_settings, reference):
    folder = fork_run("two", taught_run)
    run_verb("distill", tiny_settings(folder, "cluster.num_workers=2", *OWN))
    assert [r["loss"] for r in rows(folder)] == pytest.approx([r["loss"] for r in rows(reference)][:3], rel=1e-3)


def test_the_sampled_engine_refuses_them(tiny_run, tiny_settings):
    with pytest.raises(InputError, match=r"distill\.num_student=3 ranks all items for every user .* distill\.num_student=0"):
        tiny_settings(tiny_run, *OWN, "cluster.engine=sampled")
