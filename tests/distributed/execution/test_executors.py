"""One process and Ray give the same artifacts; what only Ray can do is refused with what to set."""

import pytest
import torch
from promptmm.core.errors import InputError
from promptmm.distributed.config import ClusterConfig
from promptmm.jobs.verbs import run_verb
from safetensors.torch import load_file

ENGINES = {"full": ["cluster.engine=full"], "sampled": ["cluster.engine=sampled", "sampling.fan_outs=[4, 3]"]}


def tensors(folder):
    """Every tensor of both stages' artifacts, by file and name."""
    files = [*(folder / "teacher").rglob("*.safetensors"), *(folder / "training" / "student" / "model").glob("*.safetensors")]
    return {f"{path.relative_to(folder)} {name}": t for path in files for name, t in load_file(str(path)).items()}


@pytest.mark.parametrize("engine", [pytest.param("full", marks=pytest.mark.slow), "sampled"])
def test_executors_write_the_same_bits(ray_cluster, fork_run, tiny_settings, engine):
    """Teacher and student, weights and vectors; the student's labels are streamed, from this process and from a pool of labelers."""
    found = {}
    for executor in ("local", "ray"):
        folder = fork_run(executor)
        words = [*ENGINES[engine], "labels.mode=streamed", "cluster.threads=1", f"cluster.executor={executor}"]
        for verb in ("train-teacher", "distill"):
            run_verb(verb, tiny_settings(folder, *words))
        found[executor] = tensors(folder)
    assert set(found["local"]) == set(found["ray"])
    assert {name.split("/")[0] for name in found["local"]} == {"teacher", "training"}
    for name, value in found["local"].items():
        assert torch.equal(value, found["ray"][name]), name


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"num_workers": 2}, r"cluster\.num_workers=2: cluster\.executor=local is one worker; set cluster\.executor=ray"),
        ({"zero_stage": 1}, r"cluster\.zero_stage=1: .*set cluster\.zero_stage=0 or cluster\.executor=ray"),
        ({"address": "auto"}, r"cluster\.address=auto has no meaning with cluster\.executor=local; set cluster\.executor=ray"),
    ],
)
def test_what_one_process_cannot_do_is_refused(settings, message):
    with pytest.raises(InputError, match=message):
        ClusterConfig(executor="local", **settings)


def test_a_graph_of_several_parts_is_refused(tmp_path, tiny_settings):
    """It says so before training; the full engine needs no graph in this process."""
    for verb in ("prepare", "partition"):
        run_verb(verb, tiny_settings(tmp_path, "graph.num_parts=2"))
    local = ["graph.num_parts=2", "cluster.executor=local"]
    expected = r"has 2 parts.*partition again with graph\.num_parts=1 \(run\.redo=partition\), or set cluster\.executor=ray"
    with pytest.raises(InputError, match=expected):
        run_verb("train-teacher", tiny_settings(tmp_path, *local, *ENGINES["sampled"]))
    run_verb("train-teacher", tiny_settings(tmp_path, *local, *ENGINES["full"], "run.redo=train-teacher"))


def test_the_sampled_engine_asks_for_a_graph(tmp_path, tiny_settings):
    run_verb("prepare", tiny_settings(tmp_path))
    with pytest.raises(InputError, match="partition"):
        run_verb("train-teacher", tiny_settings(tmp_path, "cluster.executor=local", *ENGINES["sampled"]))
