"""The epoch loop: early stopping, the epoch that is kept, checkpoints, rounds, and going on after an interruption."""

import json
import math
from pathlib import Path

import pytest
import torch
from promptmm.core.errors import InputError
from promptmm.distributed.loop.trackers import TRACKERS

SCRIPT = [0.1, 0.5, 0.4, 0.3, 0.2, 0.9, 0.1, 0.1]


def rows(stage):
    """The history without the clock's numbers."""
    return [{name: value for name, value in row.items() if name not in ("seconds", "waiting")} for row in stage.recorder.history]


def written(stage):
    return [json.loads(line) for line in Path(stage.recorder.url, "metrics.jsonl").read_text().splitlines()]


def outcome(stage, trainer, epochs):
    return {
        "epochs": epochs,
        "history": rows(stage),
        "selection": stage.selection.state(),
        "trained": trainer.trained,
        "best": trainer.best,
    }


@pytest.mark.parametrize(("patience", "epochs", "best"), [(1, 3, 1), (2, 4, 1), (3, 5, 1), (4, 8, 5)])
def test_early_stopping_and_the_kept_epoch(make_stage, make_trainer, patience, epochs, best):
    stage, trainer = make_stage(patience=patience), make_trainer(SCRIPT)
    assert stage.train(trainer, len(SCRIPT)) == epochs
    assert trainer.trained == list(range(epochs))
    assert trainer.best == list(range(best + 1))
    assert (stage.selection.best_epoch, stage.selection.best_value) == (best, SCRIPT[best])
    assert stage.selection.should_stop == (epochs < len(SCRIPT))
    assert [row["validation/recall@20"] for row in rows(stage)] == SCRIPT[:epochs]


def test_ties_keep_the_first_epoch_and_use_up_patience(make_stage, make_trainer):
    stage, trainer = make_stage(patience=2), make_trainer([0.5] * 8)
    assert stage.train(trainer, 8) == 3
    assert trainer.best == [0]


@pytest.mark.parametrize(
    ("every", "stop", "evaluated"), [(1, 3, [0, 1, 2]), (2, 6, [1, 3, 5]), (2, 5, [1, 3, 4]), (4, 3, [2]), (3, 7, [2, 5, 6])]
)
def test_evaluations_and_the_last_epoch(make_stage, make_trainer, every, stop, evaluated):
    stage, trainer = make_stage(evaluate_every=every), make_trainer(SCRIPT)
    assert stage.train(trainer, stop) == stop
    assert trainer.of("validate") == evaluated
    assert [row["epoch"] for row in rows(stage) if "validation/recall@20" in row] == evaluated
    best = max(evaluated, key=lambda epoch: SCRIPT[epoch])
    assert trainer.best == list(range(best + 1))


def test_patience_is_of_evaluations_and_not_of_epochs(make_stage, make_trainer):
    script = [0, 0.5, 0, 0.4, 0, 0.3, 0, 0.9]
    stage, trainer = make_stage(patience=2, evaluate_every=2), make_trainer(script)
    assert stage.train(trainer, len(script)) == 6
    assert trainer.best == [0, 1]


@pytest.mark.parametrize(("every", "saved"), [(1, [1, 2, 3, 4, 5]), (2, [2, 4]), (5, [5]), (6, [])])
def test_checkpoints(make_stage, make_trainer, every, saved):
    stage, trainer = make_stage(checkpoint_every=every), make_trainer(SCRIPT)
    stage.train(trainer, 5)
    assert trainer.of("save") == saved
    folder = Path(stage.checkpoints.url)
    assert sorted(path.name for path in folder.glob("*")) == [f"epoch-{epoch:06d}" for epoch in saved[-2:]]


@pytest.mark.parametrize("step", [0, 2, 3])
@pytest.mark.parametrize("epoch", range(6))
@pytest.mark.parametrize(("checkpoint_every", "evaluate_every"), [(1, 1), (2, 1), (3, 2)])
def test_an_interrupted_run_goes_on_as_if_undisturbed(make_stage, make_trainer, interrupted, checkpoint_every, evaluate_every, epoch, step):
    config = {"patience": 4 // evaluate_every, "checkpoint_every": checkpoint_every, "evaluate_every": evaluate_every}
    stage, trainer = make_stage("undisturbed", **config), make_trainer(SCRIPT)
    expected = outcome(stage, trainer, stage.train(trainer, 7))
    assert expected["epochs"] > epoch

    with pytest.raises(interrupted):
        make_stage(**config).train(make_trainer(SCRIPT, (epoch, step)), 7)
    shown: list[str] = []
    stage, trainer = make_stage(show=shown.append, **config), make_trainer(SCRIPT)
    assert outcome(stage, trainer, stage.train(trainer, 7)) == expected
    resumed = epoch // checkpoint_every * checkpoint_every
    assert trainer.of("open") == [range(resumed, 7)]
    assert trainer.of("start") == list(range(resumed, expected["epochs"]))
    assert (f"[student] resuming after epoch {resumed - 1}" in shown) == (resumed > 0)
    assert [row["epoch"] for row in written(stage)] == list(range(expected["epochs"]))


def test_interruptions_in_every_epoch(make_stage, make_trainer, interrupted):
    config = {"patience": 3, "checkpoint_every": 1}
    for epoch in range(5):
        with pytest.raises(interrupted):
            make_stage(**config).train(make_trainer(SCRIPT, (epoch, 1)), 8)
    stage, trainer = make_stage(**config), make_trainer(SCRIPT)
    undisturbed, other = make_stage("undisturbed", **config), make_trainer(SCRIPT)
    assert outcome(stage, trainer, stage.train(trainer, 8)) == outcome(undisturbed, other, undisturbed.train(other, 8))
    assert trainer.trained == [0, 1, 2, 3, 4]


def test_a_run_that_has_ended_trains_no_more(make_stage, make_trainer):
    stage, trainer = make_stage(patience=2, checkpoint_every=1), make_trainer(SCRIPT)
    ended = stage.train(trainer, 8)
    again, other = make_stage(patience=2, checkpoint_every=1), make_trainer(SCRIPT)
    assert again.train(other, 8) == ended == 4
    assert other.of("start") == []
    assert other.best == trainer.best


def test_a_damaged_checkpoint_is_left_out(make_stage, make_trainer):
    config = {"patience": 3, "checkpoint_every": 1}
    undisturbed, other = make_stage("undisturbed", **config), make_trainer(SCRIPT)
    expected = outcome(undisturbed, other, undisturbed.train(other, 5))
    stage, trainer = make_stage(**config), make_trainer(SCRIPT)
    stage.train(trainer, 3)
    (Path(stage.checkpoints.url) / "epoch-000003" / "state.safetensors").write_bytes(b"half")
    stage, trainer = make_stage(**config), make_trainer(SCRIPT)
    assert outcome(stage, trainer, stage.train(trainer, 5)) == expected
    assert trainer.of("open") == [range(2, 5)]


def rounds(make_stage, make_trainer, run, interrupt_at=None, interrupted=None):
    """Two rounds of labels, the second with an interruption; the outcome of each."""
    config = {"patience": 2, "checkpoint_every": 2}
    script = [0.5, 0.4, 0.3, 0.9, 0.9, 0.3, 0.2, 0.1]  # the first round stops after epoch 2
    found = []
    for revision, stop in ((0, 5), (1, 8)):
        if interrupt_at and revision:
            with pytest.raises(interrupted):
                make_stage(run, **config).train(make_trainer(script, interrupt_at), stop, revision)
        stage, trainer = make_stage(run, **config), make_trainer(script)
        epochs = stage.train(trainer, stop, revision)
        stage.save(trainer, epochs)
        found.append(outcome(stage, trainer, epochs))
    return found


def test_rounds(make_stage, make_trainer):
    first, second = rounds(make_stage, make_trainer, "run")
    assert first["epochs"] == 3
    assert first["best"] == [0]
    assert second["epochs"] == 6  # epoch 3 is the best; 4 ties and 5 is worse: patience of 2
    assert second["best"] == [0, 1, 2, 3]
    assert [row["epoch"] for row in second["history"]] == list(range(6))
    assert second["history"][:3] == first["history"]
    assert second["selection"] == {"best_value": 0.9, "best_epoch": 3, "num_bad": 2, "revision": 1}


def test_a_new_round_has_patience_though_nothing_gets_better(make_stage, make_trainer):
    config = {"patience": 2, "checkpoint_every": 5}
    script = [0.9, *[0.1] * 9]
    for revision, stop, epochs in ((0, 5, 3), (1, 10, 5)):
        stage, trainer = make_stage(**config), make_trainer(script)
        assert stage.train(trainer, stop, revision) == epochs
        assert trainer.best == [0]
        stage.save(trainer, epochs)


@pytest.mark.parametrize("epoch", [3, 4, 5])
def test_an_interruption_does_not_renew_a_rounds_patience(make_stage, make_trainer, interrupted, epoch):
    assert rounds(make_stage, make_trainer, "interrupted", (epoch, 1), interrupted) == rounds(make_stage, make_trainer, "undisturbed")


@pytest.mark.parametrize("interrupt_at", [None, (1, 2), (3, 0)])
def test_without_a_validation_split(make_stage, make_trainer, interrupted, interrupt_at):
    config = {"patience": 1, "checkpoint_every": 2, "select_by": None}
    if interrupt_at:
        with pytest.raises(interrupted):
            make_stage(**config).train(make_trainer(None, interrupt_at), 5)
    stage, trainer = make_stage(**config), make_trainer(None)
    assert stage.train(trainer, 5) == 5
    assert trainer.best == trainer.trained == [0, 1, 2, 3, 4]
    assert stage.selection.best_epoch == 4
    assert not any(name.startswith("validation/") for row in rows(stage) for name in row)


@pytest.mark.parametrize("step", [0, 1, 2])
def test_a_failing_step_closes_the_batches_and_the_trainer(make_stage, make_trainer, interrupted, step):
    trainer = make_trainer(SCRIPT, (1, step))
    with pytest.raises(interrupted):
        make_stage().train(trainer, 4)
    assert trainer.of("batches closed") == [0, 1]
    assert trainer.calls[-1] == ("close",)
    assert trainer.calls.count(("close",)) == 1


def test_a_loss_that_is_not_finite_ends_training_and_names_the_step(make_stage, make_trainer):
    stage, trainer = make_stage(checkpoint_every=1), make_trainer(SCRIPT)
    step = trainer.train_step
    trainer.train_step = lambda batch, epoch: {**step(batch, epoch), "l2": torch.tensor(math.nan if (epoch, batch.step) == (2, 1) else 1.0)}
    with pytest.raises(FloatingPointError, match="student epoch 2, step 1"):
        stage.train(trainer, 4)
    assert trainer.of("save") == [1, 2]
    assert trainer.of("batches closed") == [0, 1, 2]
    assert trainer.calls[-1] == ("close",)


def test_rows_of_the_epochs(make_stage, make_trainer):
    shown: list[str] = []
    stage, trainer = make_stage(show=shown.append, evaluate_every=2), make_trainer(SCRIPT)
    stage.train(trainer, 3)
    assert written(stage) == stage.recorder.history
    for epoch, row in enumerate(stage.recorder.history):
        bpr = 0.4 * (1 / (1 + epoch)) + 0.4 * (1 / (1 + epoch) + 1) + 0.2 * (1 / (1 + epoch) + 2)  # steps of 10, 10 and 5 of 25 examples
        assert row["epoch"] == epoch
        assert row["loss/bpr"] == pytest.approx(bpr)
        assert row["loss/l2"] == pytest.approx(0.5)
        assert row["loss"] == pytest.approx(bpr + 0.5)
        assert row["revision"] == 0  # what the trainer's end of an epoch adds
        assert row["seconds"] >= 0
        assert 0 <= row["waiting"] <= 1
        assert ("validation/ndcg@20" in row) == ("validation/recall@20" in row) == (epoch in (1, 2))
    assert shown.pop(0) == "[student] before the first step  validation recall@20 0.0000"
    assert [line.partition("  loss")[0] for line in shown] == [f"[student] epoch   {epoch}" for epoch in range(3)]
    assert "validation recall@20 0.5000 (best 0.5000, epoch 1)" in shown[1]
    assert "validation" not in shown[0]


TRACKER = """
import json
from pathlib import Path


class Lines:
    component = "tracker"

    def start(self, url, stage):
        self.file = open(Path(url) / "lines.txt", "a")
        self.write("start", stage)

    def write(self, *words):
        print(*words, file=self.file, flush=True)

    def record(self, row):
        self.write("row", json.dumps(row))

    def close(self):
        self.write("close")
        self.file.close()


class NoTracker:
    pass
"""


@pytest.fixture
def own_tracker(tmp_path, monkeypatch):
    folder = tmp_path / "modules"
    folder.mkdir()
    (folder / "trackers_of_mine.py").write_text(TRACKER)
    monkeypatch.syspath_prepend(str(folder))
    return "trackers_of_mine:Lines"


def tracked(stage):
    """What the trackers were told, as lines, and the rows among them."""
    lines = Path(stage.recorder.url, "lines.txt").read_text().splitlines()
    return [line.split(" ")[0] for line in lines], [json.loads(line.removeprefix("row ")) for line in lines if line.startswith("row ")]


def test_a_tracker_gets_every_row_once_and_is_closed(make_stage, make_trainer, own_tracker):
    stage, trainer = make_stage(trackers=[own_tracker], patience=3), make_trainer(SCRIPT)
    assert stage.train(trainer, 8) == 5
    words, found = tracked(stage)
    assert words == ["start", *["row"] * 5, "close"]
    assert found == stage.recorder.history


def test_trackers_of_an_interrupted_run(make_stage, make_trainer, own_tracker, interrupted):
    """The first process's tracker is closed too; the second one begins with the epoch that training goes on from."""
    config = {"trackers": [own_tracker], "checkpoint_every": 2}
    with pytest.raises(interrupted):
        make_stage(**config).train(make_trainer(SCRIPT, (3, 1)), 5)
    stage, trainer = make_stage(**config), make_trainer(SCRIPT)
    stage.train(trainer, 5)
    words, found = tracked(stage)
    assert words == ["start", "row", "row", "row", "close", "start", "row", "row", "row", "close"]
    assert [row["epoch"] for row in found] == [0, 1, 2, 2, 3, 4]
    assert found[3:] == stage.recorder.history[2:]


def events_of(file):
    """The events of a file of records: a length of 8 bytes, 4 of a checksum, the event, 4 of a checksum."""
    from tensorboardX.proto.event_pb2 import Event

    data, at = file.read_bytes(), 0
    while at < len(data):
        size = int.from_bytes(data[at : at + 8], "little")
        yield Event.FromString(data[at + 12 : at + 12 + size])
        at += size + 16


def test_tensorboard_has_every_row(make_stage, make_trainer):
    stage, trainer = make_stage(trackers=["tensorboard"]), make_trainer(SCRIPT)
    stage.train(trainer, 3)
    (file,) = (Path(stage.recorder.url) / "tensorboard").iterdir()
    scalars = [(value.tag, event.step, value.simple_value) for event in events_of(file) for value in event.summary.value]
    for name in ("loss", "loss/bpr", "seconds", "validation/recall@20"):
        tag = f"student/{name}".replace("@", "_")  # TensorBoard's tags know no @
        found = [(step, value) for of, step, value in scalars if of == tag]
        assert found == [(row["epoch"], pytest.approx(row[name], rel=1e-6)) for row in stage.recorder.history]


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("wandb", "run.trackers='wandb': no such tracker; the kinds that ship are tensorboard"),
        ("no_such_module:Tracker", "there is no module 'no_such_module' here"),
        ("trackers_of_mine:Lies", "the module trackers_of_mine has no Lies"),
        ("trackers_of_mine:NoTracker", "NoTracker is not a class with the attribute component = 'tracker'"),
    ],
)
def test_names_of_no_tracker(own_tracker, name, message):
    from promptmm.jobs.sections import RunConfig

    for call in (
        TRACKERS.check,
        TRACKERS.get,
        lambda name: RunConfig(trackers=[name]),
        lambda name: RunConfig(trackers=["tensorboard", name]),
    ):
        with pytest.raises(InputError, match=message):
            call(name)
    RunConfig(trackers=[own_tracker])


@pytest.mark.parametrize(("start_value", "best"), [(0.3, 5), (0.95, -1), (0.9, -1)])
def test_the_start_is_kept_where_no_epoch_is_better(make_stage, make_trainer, start_value, best):
    stage, trainer = make_stage(patience=len(SCRIPT)), make_trainer(SCRIPT, start_value=start_value)
    stage.train(trainer, len(SCRIPT))
    assert trainer.of("validate the start") == [start_value]
    assert stage.selection.best_epoch == best
    assert stage.selection.chosen == ("the start" if best < 0 else f"epoch {best}")
    assert trainer.best == list(range(best + 1))
    again = make_stage(patience=len(SCRIPT))
    resumed = make_trainer(SCRIPT, start_value=0.0)
    again.train(resumed, len(SCRIPT))
    assert resumed.of("validate the start") == []
    assert again.selection.state() == stage.selection.state()


def test_without_a_validation_split_the_start_is_not_validated(make_stage, make_trainer):
    trainer = make_trainer(None)
    make_stage(select_by=None).train(trainer, 2)
    assert trainer.of("validate the start") == []


@pytest.mark.parametrize(("script", "says"), [([0.1, 0.2, 0.3], True), ([0.1, 0.3, 0.2], False), (None, False)])
def test_training_that_was_cut_off_is_said(make_stage, make_trainer, script, says):
    shown: list[str] = []
    make_stage(show=shown.append, epochs=3, select_by="recall@20" if script else None).train(make_trainer(script), 3)
    notice = "[student] the last epoch was the best, so student.train.epochs=3 ended training before it had converged: raise that"
    assert (notice in shown) == says
    early = make_stage("another", show=shown.append, epochs=3, select_by="recall@20" if script else None, ends_early=True)
    early.train(make_trainer(script), 3)
    assert shown.count(notice) == says


def test_a_round_that_is_not_the_last_says_nothing_of_it(make_stage, make_trainer):
    shown: list[str] = []
    make_stage(show=shown.append, epochs=8).train(make_trainer(SCRIPT), 2)
    assert not any("converged" in line for line in shown)
