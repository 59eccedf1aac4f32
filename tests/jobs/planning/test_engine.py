"""The engine of a run: as set, as started with, as planned, as chosen now."""

import dataclasses
import re

import pytest
from promptmm.core.errors import InputError
from promptmm.core.storage import write_json
from promptmm.jobs.planning.engine import choose_engine, engine_of
from promptmm.jobs.planning.plan import make_plan
from promptmm.jobs.planning.record import read_plan, write_plan
from promptmm.jobs.planning.units import GIB
from promptmm.jobs.runs.stages import record_url
from promptmm.jobs.settings import load_settings

from .conftest import fixed, large


def test_auto_takes_the_full_engine_where_it_fits(dataset, settings):
    assert settings.cluster.engine == "auto"
    assert choose_engine(settings, dataset, 64 * GIB).engine == "full"
    assert choose_engine(settings, dataset, None).engine == "full"
    huge = large(dataset, 10**6)
    choice = choose_engine(settings, huge, 64 * GIB)
    assert choice.engine == "sampled"
    assert re.search(r"the full engine needs [\d.]+ GiB in [a-z-]+.*, and a host has 64.0 GiB", choice.reason)


@pytest.mark.parametrize("override", ["distill.regime=inline", "student.kind=mlp"])
def test_what_only_the_full_engine_can_do_decides(dataset, override):
    choice = choose_engine(load_settings(None, [override]), large(dataset, 10**6), GIB)
    assert choice.engine == "full"
    assert override.split("=")[0] in choice.reason
    for other in ("cluster.engine=sampled", "sampling.exclude_seed_edges=true"):
        with pytest.raises(InputError, match="keeps the teacher whole in every worker"):
            load_settings(None, [override, other])


def test_rounds_take_the_engine_that_fits(dataset):
    rounds = load_settings(None, ["distill.rounds=2"])
    assert choose_engine(rounds, dataset, 64 * GIB).engine == "full"
    assert choose_engine(rounds, large(dataset, 10**6), 64 * GIB).engine == "sampled"
    assert load_settings(None, ["distill.rounds=2", "cluster.engine=sampled"]).distill.rounds == 2


def test_seed_edges_can_be_left_out_of_blocks_only(dataset):
    assert choose_engine(load_settings(None, ["sampling.exclude_seed_edges=true"]), dataset, 64 * GIB).engine == "sampled"
    with pytest.raises(InputError, match=r"exclude_seed_edges=true has no meaning with cluster.engine=full"):
        load_settings(None, ["sampling.exclude_seed_edges=true", "cluster.engine=full"])


def test_a_run_keeps_the_engine_it_was_started_with(dataset, tmp_path):
    """Set, then started with, then planned for these settings, then chosen now."""
    little = load_settings(None, [f"run.dir={tmp_path}", "cluster.host_memory=0.001"])
    plenty = load_settings(None, [f"run.dir={tmp_path}", "cluster.host_memory=64"])
    assert [engine_of(s, dataset, "distill").engine for s in (little, plenty)] == ["sampled", "full"]
    made = make_plan(plenty, dataset, None)
    write_plan(str(tmp_path), dataclasses.replace(made, engine="sampled", reason="written by hand"))
    assert engine_of(plenty, dataset, "train-teacher").reason == "written by hand"
    assert engine_of(plenty, dataset, "plan").engine == "full"
    changed = load_settings(None, [f"run.dir={tmp_path}", "cluster.host_memory=64", "teacher.dim=8"])
    assert engine_of(changed, dataset, "train-teacher").engine == "full"
    write_json(record_url(str(tmp_path), "train-teacher"), {"made_with": {"engine": {"engine": "sampled"}}, "done": False})
    for verb in ("plan", "train-teacher", "distill"):
        assert engine_of(plenty, dataset, verb).reason == "train-teacher was started here with it"
        assert engine_of(plenty, dataset, verb).engine == "sampled"
    write_json(record_url(str(tmp_path), "distill"), {"made_with": {"engine": {"engine": "full"}}, "done": True})
    assert engine_of(little, dataset, "distill").engine == "full"
    assert engine_of(fixed(little, "sampled"), dataset, "distill").engine == "sampled"


def test_a_plan_is_read_as_it_was_written(dataset, settings, tmp_path):
    made = make_plan(settings, dataset, 64 * GIB)
    write_plan(str(tmp_path), made)
    assert read_plan(str(tmp_path)) == made
    write_json(f"{tmp_path}/plan.json", {"engine": "full"})  # of version 0.1.0
    assert read_plan(str(tmp_path)) is None
