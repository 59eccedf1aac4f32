"""The training curves of short runs are the pinned ones, whatever runs them.

Where torch's version and vector instructions are those that the curves were recorded with, every number is the pinned one to the last
digit. Elsewhere sums come in another order: losses are then the pinned ones to a relative 1e-3, and validation metrics, which jump where
two scores of nearly the same size change places, to an absolute .05.
"""

import importlib.util
import json
from pathlib import Path

import pytest

HERE = Path(__file__).parent


def _runs():
    """runs.py beside this file, which record.py reads too."""
    spec = importlib.util.spec_from_file_location("golden_runs", HERE / "runs.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


RUNS = _runs()
PINNED = json.loads(RUNS.CURVES.read_text())
TIKTOK = HERE.parents[2] / "shared" / "data" / "tiktok"
LOSS_TOLERANCE, METRIC_TOLERANCE = 1e-3, 0.05


def curves_of(folder, *words):
    """The curves of a run in a new folder."""
    RUNS.train(folder, *words)
    return RUNS.read_curves(folder)


def check(found, name, stages=("teacher", "student")):
    """Every pinned number of every epoch of these stages; rows may have further ones."""
    pinned, exact = PINNED["curves"][name], RUNS.kernels() == PINNED["kernels"]
    assert set(found) == set(pinned) & set(stages)
    for stage in found:
        rows = pinned[stage]
        assert len(found[stage]) == len(rows)
        for row, expected in zip(found[stage], rows):
            assert set(expected) <= set(row)
            for key, value in expected.items():
                where = f"{name}: {stage} epoch {expected['epoch']}, {key}"
                if exact:
                    assert row[key] == value, where
                elif key.startswith("loss"):
                    assert row[key] == pytest.approx(value, rel=LOSS_TOLERANCE), where
                else:
                    assert row[key] == pytest.approx(value, abs=METRIC_TOLERANCE), where


def test_every_run_is_pinned():
    assert set(PINNED["curves"]) == {*RUNS.SMALL_RUNS, *RUNS.TWO_WORKERS, *RUNS.LARGE_RUNS}


@pytest.mark.parametrize("name", RUNS.SMALL_RUNS)
def test_training_in_this_process_is_as_it_was(tmp_path, name):
    check(curves_of(tmp_path / "run", *RUNS.TINY, *RUNS.SMALL_RUNS[name], RUNS.LOCAL), name)


def test_a_teacher_on_ray_is_as_it_was(ray_cluster, tmp_path):
    """Two workers with Ray, DGL's servers and DeepSpeed, where nothing but the teacher is trained."""
    name = "two workers, sampled"
    words = [*RUNS.TINY, *RUNS.TWO_WORKERS[name]]
    RUNS.train(tmp_path / "run", *words, until="train-teacher")
    check(RUNS.read_curves(tmp_path / "run"), name, ("teacher",))


@pytest.mark.slow
@pytest.mark.parametrize("name", ["sampled", *RUNS.TWO_WORKERS])
def test_training_on_ray_is_as_it_was(ray_cluster, tmp_path, name):
    """The same file of curves: executors, DeepSpeed and DGL's servers change no digit of a run."""
    check(curves_of(tmp_path / "run", *RUNS.TINY, *{**RUNS.SMALL_RUNS, **RUNS.TWO_WORKERS}[name]), name)


@pytest.mark.slow
@pytest.mark.parametrize("name", RUNS.LARGE_RUNS)
def test_larger_runs_are_as_they_were(tmp_path, name):
    more = []
    if name == "tiktok":
        if not TIKTOK.exists():
            pytest.skip(f"needs the data set's folder at {TIKTOK}")
        more = [f"source.path={TIKTOK}"]
    check(curves_of(tmp_path / "run", *RUNS.LARGE_RUNS[name], *more, RUNS.LOCAL), name)
