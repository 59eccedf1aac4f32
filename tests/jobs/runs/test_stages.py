"""A run's record: finished verbs are kept, other inputs are refused, and `run.redo` forgets a verb and all after it."""

import copy
import re
import time

import pytest
from promptmm.core.config import as_dict
from promptmm.core.errors import InputError
from promptmm.core.storage import exists, join, read_json, write_bytes, write_json
from promptmm.jobs.runs.stages import differences, forget_from, read_record, require_done, run_stage, setting_defaults
from promptmm.jobs.sections import STAGES
from promptmm.jobs.settings import Settings, load_settings
from promptmm.jobs.verbs.products import PRODUCTS

INPUTS = {"teacher": {"dim": 8, "train": {"epochs": 2}}, "dataset": "abc"}


@pytest.fixture(params=["local", "memory"])
def settings(request, tmp_path) -> Settings:
    return load_settings(None, [f"run.dir={tmp_path if request.param == 'local' else f'memory://{tmp_path.name}/run'}"])


def redo(settings: Settings, verb: str) -> Settings:
    return load_settings(None, [f"run.dir={settings.dir}", f"run.redo={verb}"])


def test_a_finished_verb_is_not_repeated(settings, capsys):
    calls: list[int] = []
    first = run_stage(settings, "label", INPUTS, lambda: calls.append(1) or {"rows": 3})
    assert "[label] done in" in capsys.readouterr().out
    second = run_stage(settings, "label", INPUTS, lambda: calls.append(2))
    assert "[label] already done" in capsys.readouterr().out
    assert calls == [1]
    assert second == first == read_record(settings.dir, "label")
    assert first.result == {"rows": 3}
    assert first.done


def test_changed_inputs_are_refused_by_name(settings):
    run_stage(settings, "train-teacher", INPUTS, dict)
    changed = {"teacher": {"dim": 16, "train": {"epochs": 3}}, "dataset": "abc"}
    with pytest.raises(InputError, match=r"or add run\.redo=train-teacher to do it again with what is given now$"):
        run_stage(settings, "train-teacher", changed, lambda: pytest.fail("done again"))
    write_bytes(f"{settings.dir}/config.yaml", b"{}")  # what a command saves; there is none in an experiment's folder
    message = (
        f"{settings.dir}: train-teacher was started here with teacher.dim=8 (now 16); teacher.train.epochs=2 (now 3). "
        "Use another run.dir, or add run.redo=train-teacher to do it again with what is given now; to go on as before, give the recipe "
        f"{settings.dir}/config.yaml"
    )
    with pytest.raises(InputError, match=re.escape(message)):
        run_stage(settings, "train-teacher", changed, lambda: pytest.fail("done again"))
    assert run_stage(settings, "train-teacher", INPUTS, lambda: pytest.fail("done again")).done


def test_changed_inputs_of_an_unfinished_verb_are_refused_too(settings):
    with pytest.raises(KeyboardInterrupt):
        run_stage(settings, "distill", INPUTS, interrupted)
    with pytest.raises(InputError, match="distill was started here with dataset=abc"):
        run_stage(settings, "distill", {**INPUTS, "dataset": "def"}, dict)


def interrupted():
    time.sleep(0.06)
    raise KeyboardInterrupt


def test_a_failure_leaves_the_verb_undone_and_its_time_adds_up(settings):
    spent = []
    for error in (KeyboardInterrupt, KeyboardInterrupt):
        with pytest.raises(error):
            run_stage(settings, "distill", INPUTS, interrupted)
        record = read_record(settings.dir, "distill")
        assert record is not None
        assert not record.done
        spent.append(record.seconds)
    assert spent[0] >= 0.06
    assert spent[1] >= spent[0] + 0.06
    with pytest.raises(InputError, match=r"evaluate needs what distill leaves in .*, and distill has not finished there"):
        require_done(settings.dir, "distill", "evaluate")
    record = run_stage(settings, "distill", INPUTS, dict)
    assert record.seconds >= spent[1]
    assert require_done(settings.dir, "distill", "evaluate") == record


def test_a_verb_that_is_running_is_not_done(settings):
    seen = []
    run_stage(settings, "label", INPUTS, lambda: seen.append(read_record(settings.dir, "label")))
    assert seen[0].done is False
    assert seen[0].made_with == INPUTS


def test_never_started(settings):
    assert read_record(settings.dir, "prepare") is None
    with pytest.raises(InputError, match=re.escape(f"partition needs what prepare leaves in {settings.dir}")):
        require_done(settings.dir, "prepare", "partition")


def leave_everything(settings: Settings) -> None:
    """The products and records of a whole run with a second round of labels."""
    folder = settings.dir
    for verb in STAGES:
        for product in PRODUCTS[verb]:
            write_bytes(join(folder, product) if "." in product else join(folder, product, "x"), b"x")
        write_json(join(folder, "stages", f"{verb}.json"), {"made_with": {}, "done": True, "seconds": 1.0, "result": None})
    for artifact in ("teacher", "labels"):
        for revision in (0, 1, 2):
            write_bytes(join(folder, artifact, f"rev-{revision}", "manifest.json"), b"{}")
    write_bytes(join(folder, "config.yaml"), b"{}")


@pytest.mark.parametrize("verb", STAGES)
def test_redo_removes_this_and_later_products_only(settings, verb):
    leave_everything(settings)
    forget_from(redo(settings, verb), PRODUCTS)
    place = STAGES.index(verb)
    for earlier in STAGES[:place]:
        assert read_record(settings.dir, earlier) is not None
        assert all(exists(join(settings.dir, product)) for product in PRODUCTS[earlier]), earlier
    for later in STAGES[place:]:
        assert read_record(settings.dir, later) is None
        assert not any(exists(join(settings.dir, product)) for product in PRODUCTS[later]), later
    assert exists(join(settings.dir, "config.yaml"))


def test_redo_of_distill_forgets_what_prompt_tuning_made(settings):
    leave_everything(settings)
    forget_from(redo(settings, "distill"), PRODUCTS)
    for artifact in ("teacher", "labels"):
        assert [exists(join(settings.dir, artifact, f"rev-{revision}")) for revision in (0, 1, 2)] == [True, False, False]
    leave_everything(settings)
    forget_from(redo(settings, "evaluate"), PRODUCTS)
    assert exists(join(settings.dir, "teacher", "rev-2"))


def test_redo_of_prepare_removes_nothing_where_the_source_is_not_there(settings, tmp_path):
    leave_everything(settings)
    words = [f"run.dir={settings.dir}", "run.redo=prepare", "source.format=diffmm", f"source.path={tmp_path}/nowhere"]
    with pytest.raises(InputError, match="nowhere: no such folder"):
        forget_from(load_settings(None, words), PRODUCTS)
    assert all(exists(join(settings.dir, product)) for verb in STAGES for product in PRODUCTS[verb])


def test_without_redo_nothing_is_removed(settings):
    leave_everything(settings)
    forget_from(settings, PRODUCTS)
    assert all(read_record(settings.dir, verb) for verb in STAGES)
    assert all(exists(join(settings.dir, product)) for products in PRODUCTS.values() for product in products)


@pytest.mark.parametrize(
    ("old", "new", "found"),
    [
        ({"a": 1}, {"a": 1}, []),
        ({"a": 1}, {"a": 2}, ["a=1 (now 2)"]),
        ({"a": {"b": [1], "c": None}}, {"a": {"b": [2], "c": 0.5}}, ["a.b=[1] (now [2])", "a.c=None (now 0.5)"]),
        ({"a": 1}, {"b": 2}, ["a=1 (now None)", "b=None (now 2)"]),
        ({"a": {"b": 1}}, {"a": None}, ["a={'b': 1} (now None)"]),
        ({}, {}, []),
    ],
)
def test_differences(old, new, found):
    assert differences(old, new) == found


def test_a_record_from_before_a_setting_holds_while_the_setting_has_its_default(settings):
    """As a run goes on that was started with a version which did not know teacher.user_balance and student.train.lr_decay."""
    inputs = {"teacher": as_dict(settings.teacher), "student": as_dict(settings.student), "dataset": "abc"}
    before = copy.deepcopy(inputs)
    del before["teacher"]["user_balance"], before["student"]["train"]["lr_decay"]
    run_stage(settings, "train-teacher", before, dict)
    assert run_stage(settings, "train-teacher", inputs, lambda: pytest.fail("done again")).done
    changed = copy.deepcopy(inputs)
    changed["teacher"]["user_balance"] = 0.5
    with pytest.raises(InputError, match=re.escape("was started here with teacher.user_balance=0.0 (now 0.5). Use another run.dir")):
        run_stage(settings, "train-teacher", changed, dict)


def test_only_settings_have_defaults():
    assert differences({"teacher": {}}, {"teacher": {"dim": 64}, "dataset": "abc"}, setting_defaults()) == ["dataset=None (now abc)"]
    assert differences({"teacher": {"dim": 64, "gone": 1}}, {"teacher": {"dim": 64}}, setting_defaults()) == ["teacher.gone=1 (now None)"]


def test_records_are_json_that_tools_can_read(settings):
    run_stage(settings, "export", INPUTS, lambda: {"url": "x"})
    record = read_json(join(settings.dir, "stages", "export.json"))
    assert set(record) == {"made_with", "done", "seconds", "result"}
