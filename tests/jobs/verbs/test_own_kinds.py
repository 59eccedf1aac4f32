"""Kinds of one's own, in a module of the working folder: trained together from the command line, by both engines and both executors."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from promptmm.core.artifact import read_manifest
from promptmm.core.storage import read_json

OWN = '''
import json
from pathlib import Path

import torch
from promptmm.core.objectives import CandidatePolicy
from promptmm.core.students import LayeredStudent
from promptmm.core.teacher import WholeTeacher
from promptmm.core.vectors import TeacherVectors


class MyStudent(LayeredStudent):
    """A learnt mixture of a node's own row and its neighbours' sum."""

    def __init__(self, config, user_dim, item_dim):
        super().__init__(config, user_dim, item_dim)
        self.gates = torch.nn.Parameter(torch.full((config.layers, config.dim), config.options["own_share"]))

    def layer(self, number, own, neighbours):
        return self.gates[number] * own + (1 - self.gates[number]) * neighbours


def my_loss(inputs):
    margins = -inputs.teacher_scores[:, 1:] - (inputs.student.scores[:, :1] - inputs.student.scores[:, 1:])
    return torch.relu(margins + inputs.config.options["margin"]).sum() / inputs.student.num_examples


class MyCandidates(CandidatePolicy):
    """A uniform unseen item, then the teacher's best unseen ones."""

    num_candidates = property(lambda self: 1 + self.depth)
    depth = property(lambda self: self.config.options["best"])

    def identity(self):
        return {"best": self.depth}

    def draw(self, request):
        uniform = request.unseen.draw(request.users, request.examples, 1, request.seed, request.epoch)
        rows = request.users if request.ranking_rows is None else request.ranking_rows
        return torch.cat([uniform, request.ranking[rows]], 1)


def my_metric(hits, num_held_out):
    return hits.any(1).to(torch.float64) / 2


class MyTeacher(WholeTeacher):
    """LightGCN with a linear map of the features added to the items."""

    reads_features = True

    def __init__(self, num_users, num_items, dims, config, seed):
        super().__init__(num_users, num_items, dims, config, seed)
        self.maps = torch.nn.ModuleDict({f"of_{m}": torch.nn.Linear(dim, config.dim, bias=False) for m, dim in dims.items()})

    def reduce(self, features):
        return {m: self.maps[f"of_{m}"](features[m]) for m in self.modalities}

    def feature_parameters(self):
        return list(self.maps.parameters())

    def vectors(self, graph, reduced):
        users, items = self.collaborative.vectors(graph)
        users_of = {m: graph.to_users(z) for m, z in reduced.items()}
        return TeacherVectors(users, items + torch.stack(list(reduced.values())).sum(0), users_of, reduced, None, None, reduced)


class Tracker:
    component = "tracker"

    def start(self, url, stage):
        self.file = Path(url).parents[1] / f"tracked-{stage}.jsonl"

    def record(self, row):
        with open(self.file, "a") as file:
            file.write(json.dumps(row) + "\\n")

    def close(self):
        with open(self.file, "a") as file:
            file.write('"closed"\\n')
'''
LAYERS, DIM, BEST, EPOCHS = 2, 8, 3, 2


@pytest.fixture
def own(write_own_module) -> str:
    """A module of that kind in the working folder, under a name of its own."""
    return write_own_module(OWN)


def words_of(own: str) -> list[str]:
    """Settings that name every kind but the teacher."""
    return [
        f"student.kind={own}:MyStudent", "student.options={own_share: 0.3}", f"student.layers={LAYERS}",
        f"distill.losses={{{own}:my_loss: 0.5}}", f"distill.candidates={own}:MyCandidates",
        f"distill.options={{best: {BEST}, margin: 0.1}}",
        f"evaluation.metrics=[{own}:my_metric]", f"evaluation.select_by={own}:my_metric@20", f"run.trackers=[{own}:Tracker]",
    ]  # fmt: skip


def rows_of(path: Path) -> list:
    return [json.loads(line) for line in path.read_text().splitlines()]


def check_run(run: Path, own: str) -> None:
    """Every kind has left a trace: results.json has the metric, metrics.jsonl the loss, the labels the lists, the student its gates."""
    results, metric = read_json(str(run / "results.json")), f"{own}:my_metric@20"
    for model in (results["teacher"], results["student"]):
        assert model["selected_by"] == metric
        for split in ("validation", "test"):
            assert model[split][metric] == pytest.approx(model[split]["hit_ratio@20"] / 2)
    assert results["student"]["num_parameters"] == (120 + 80) * DIM + LAYERS * DIM
    history = rows_of(run / "training" / "student" / "metrics.jsonl")
    assert all(row[f"loss/{own}:my_loss"] > 0 for row in history)
    assert f"validation/{metric}" in history[0]
    labels = read_manifest(str(run / "labels" / "rev-0"), "labels")
    assert (labels["candidates"], labels["best"]) == (f"{own}:MyCandidates", BEST)
    for stage in ("teacher", "student"):
        *tracked, last = rows_of(run / f"tracked-{stage}.jsonl")
        assert tracked == rows_of(run / "training" / stage / "metrics.jsonl")
        assert len(tracked) == EPOCHS
        assert last == "closed"


@pytest.mark.whole
@pytest.mark.parametrize("engine", ["full", "sampled"])
def test_own_kinds_are_trained_together_in_this_process(own, command, tiny, tmp_path, engine):
    """The full engine trains an own teacher too; the sampled one a student of the method's."""
    teacher = [f"teacher.kind={own}:MyTeacher"] if engine == "full" else ["sampling.fan_outs=[4]"]
    where = ["cluster.executor=local", "cluster.threads=1", f"cluster.engine={engine}", f"run.dir={tmp_path}/run"]
    ended = command("pipeline", tiny, *words_of(own), *teacher, *where)
    assert ended.code == 0, ended.err
    check_run(tmp_path / "run", own)
    assert read_json(f"{tmp_path}/run/stages/distill.json")["made_with"]["engine"]["engine"] == engine
    if engine == "full":
        trained = read_manifest(f"{tmp_path}/run/teacher", "teacher")
        assert trained["config"]["kind"] == f"{own}:MyTeacher"
        assert trained["num_parameters"] == (120 + 80) * DIM + sum(dim for _, dim in trained["modalities"]) * DIM


@pytest.mark.whole
def test_own_kinds_are_found_by_the_workers_of_ray(own, process, tiny, tmp_path):
    """The command is started in the module's folder, and its workers, labelers and evaluators import the module."""
    words = [*words_of(own), f"teacher.kind={own}:MyTeacher", "cluster.num_workers=2", f"run.dir={tmp_path}/run"]
    ended = process("pipeline", tiny, *words, cwd=tmp_path)
    assert ended.code == 0, f"{ended.out[-2000:]}\n{ended.err[-4000:]}"
    check_run(tmp_path / "run", own)


def test_a_loss_that_is_no_scalar_is_refused(own, command, tiny, tmp_path):
    with open(tmp_path / f"{own}.py", "a") as file:
        file.write("\n\ndef unsummed(inputs):\n    return inputs.student.scores\n")
    where = ("cluster.executor=local", "cluster.engine=full", f"run.dir={tmp_path}/run")
    ended = command("pipeline", tiny, f"distill.losses={{{own}:unsummed: 1.0}}", *where)
    assert ended.code == 2
    assert f"{own}:unsummed returns a tensor of shape [512, 21]; a loss is a scalar tensor" in ended.err


def test_own_kinds_that_do_not_fit_are_refused_before_any_work(own, command, tiny, tmp_path):
    def refused(message: str) -> Callable[..., None]:
        def of(*words: str) -> None:
            ended = command("pipeline", tiny, "cluster.executor=local", f"run.dir={tmp_path}/run", *words)
            assert ended.code == 2
            assert message in ended.err
            assert not (tmp_path / "run").exists()

        return of

    refused("MyTeacher is trained by the full engine alone")(f"teacher.kind={own}:MyTeacher", "cluster.engine=sampled")
    boastful = f"from {own} import MyTeacher\n\n\nclass Boastful(MyTeacher):\n    engines = ('full', 'sampled')\n"
    (tmp_path / f"{own}_boastful.py").write_text(boastful)
    ensemble = ("teacher.kind=ensemble", f"teacher.components={{promptmm: {{}}, mine: {{kind: '{own}_boastful:Boastful'}}}}")
    refused("Boastful: a core.teacher.WholeTeacher has no towers and no prompt")(*ensemble, "cluster.engine=sampled")
    refused("MyTeacher has no prompt to tune")(f"teacher.kind={own}:MyTeacher", "distill.rounds=2")
    refused("there is no module 'nowhere' here; put its file into the folder that the command is started from")("student.kind=nowhere:X")
