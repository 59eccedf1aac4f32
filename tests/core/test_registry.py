"""Kinds by name: those that ship, one's own, and names of nothing, wherever a setting takes one."""

import re

import pytest
import torch
from promptmm.core.config import DistillationConfig, EvaluationConfig, StudentConfig, TeacherConfig
from promptmm.core.errors import InputError
from promptmm.core.kinds import CANDIDATES, LOSSES, METRICS, STUDENTS, TEACHERS
from promptmm.core.metrics import metric_of_users, user_metric
from promptmm.core.objectives import candidate_policy
from promptmm.core.registry import Registry, declares
from promptmm.core.students import LayeredStudent, Student, build_student, student_kind
from promptmm.core.teacher import Teacher, teacher_kind

REGISTRIES = [STUDENTS, TEACHERS, LOSSES, CANDIDATES, METRICS]

OWN = """
import torch
from promptmm.core.objectives import CandidatePolicy
from promptmm.core.students import LayeredStudent
from promptmm.core.teacher import WholeTeacher


class HalfStudent(LayeredStudent):
    def layer(self, number, own, neighbours):
        return (own + neighbours) / 2


class PlainTeacher(WholeTeacher):
    reads_features = False


class FirstItems(CandidatePolicy):
    num_candidates = 3

    def identity(self):
        return {"first": self.config.options["first"]}


def squares(inputs):
    return inputs.teacher_scores.square().sum()


def places(hits, num_held_out):
    return hits.sum(1)


NUMBER = 3
"""


@pytest.fixture
def own(tmp_path, monkeypatch):
    """A module of one's own, in a folder where Python looks for modules."""
    (tmp_path / "kinds_of_mine.py").write_text(OWN)
    (tmp_path / "tensorbored_tracker.py").write_text("import tensorbored")
    monkeypatch.syspath_prepend(str(tmp_path))
    return "kinds_of_mine"


def refused(*parts):
    """Expects an InputError whose message has all the parts in this order."""
    return pytest.raises(InputError, match="(?s)" + ".*".join(re.escape(part) for part in parts))


def ships(registry):
    return f"the kinds that ship are {', '.join(registry.names)}, and your own is named module:attribute"


@pytest.mark.parametrize("registry", REGISTRIES, ids=lambda registry: registry.what)
def test_everything_that_ships_is_there(registry):
    assert registry.names
    for name in registry.names:
        registry.check(name)
        assert registry.get(name) is registry.get(name)


@pytest.mark.parametrize("registry", REGISTRIES, ids=lambda registry: registry.what)
@pytest.mark.parametrize("name", ["unknown", "", ":", "module:", ":attribute", "./kinds_of_mine.py:HalfStudent", ".students:Student"])
def test_names_of_nothing(own, registry, name):
    for call in (registry.get, registry.check):
        with refused(f"{registry.setting}={name!r}: no such {registry.what}; ", ships(registry)):
            call(name)


@pytest.mark.parametrize("registry", REGISTRIES, ids=lambda registry: registry.what)
def test_what_is_not_there_or_is_something_else(own, registry):
    with refused(
        f"{registry.setting}='no_such_module:Kind': there is no module 'no_such_module' here", "put its file into", ships(registry)
    ):
        registry.check("no_such_module:Kind")
    with refused("there is no module 'kinds_of_mine.deeper' here", ships(registry)):
        registry.check(f"{own}.deeper:Kind")
    with refused(f"{registry.setting}='{own}:Kind': the module {own} has no Kind; ", ships(registry)):
        registry.check(f"{own}:Kind")
    with refused(f"{registry.setting}='{own}:NUMBER': NUMBER is not a ", ships(registry)):
        registry.check(f"{own}:NUMBER")


def test_a_kind_of_another_component_is_refused(own):
    with refused("student.kind='kinds_of_mine:PlainTeacher': PlainTeacher is not a subclass of promptmm.core.students.Student"):
        STUDENTS.get(f"{own}:PlainTeacher")
    with refused("teacher.kind='kinds_of_mine:HalfStudent': HalfStudent is not a subclass of promptmm.core.teacher.WholeTeacher"):
        TEACHERS.get(f"{own}:HalfStudent")
    with refused("squares is not a subclass of promptmm.core.objectives.CandidatePolicy"):
        CANDIDATES.get(f"{own}:squares")


def test_a_module_whose_own_import_is_missing_says_so(own):
    """Also where its name starts with that of the missing one: nobody should look for a file that is there."""
    with pytest.raises(ModuleNotFoundError, match="No module named 'tensorbored'"):
        STUDENTS.get("tensorbored_tracker:Kind")


def test_kinds_of_ones_own(own):
    config = StudentConfig(kind=f"{own}:HalfStudent", dim=3, layers=1)
    student = build_student(config, seed=0)
    assert isinstance(student, LayeredStudent)
    assert student_kind(config) is type(student)
    assert not config.starts_from_teacher
    teacher = TeacherConfig(kind=f"{own}:PlainTeacher")
    assert issubclass(teacher_kind(teacher), Teacher)
    assert teacher.is_baseline
    assert not teacher.reads_features
    distill = DistillationConfig(candidates=f"{own}:FirstItems", options={"first": 5}, losses={f"{own}:squares": 0.5})
    assert candidate_policy(distill).identity() == {"first": 5}
    assert distill.loss_weights()[f"{own}:squares"] == 0.5
    evaluation = EvaluationConfig(metrics=[f"{own}:places"], select_by=f"{own}:places@20")
    assert evaluation.metric_names[-1] == f"{own}:places"
    assert user_metric(f"{own}:places")(torch.tensor([[True, True]]), torch.tensor([3])).tolist() == [2]


def test_a_registry_of_ones_own_package():
    registry = Registry("student", "a.setting", {"mf": ".layered:MfStudent"}, "promptmm.core.students", declares("student"), "a student")
    assert issubclass(registry.get("mf"), Student)
    assert registry.get("promptmm.core.students.layered:MfStudent") is registry.get("mf")


NONE = torch.zeros(0, dtype=torch.int64)
NAMED = {  # where a name can stand, the registry that it is looked up in
    "student.kind": (lambda name: StudentConfig(kind=name), STUDENTS),
    "teacher.kind": (lambda name: TeacherConfig(kind=name), TEACHERS),
    "distill.losses": (lambda name: DistillationConfig(losses={name: 1.0}), LOSSES),
    "distill.candidates": (lambda name: DistillationConfig(candidates=name), CANDIDATES),
    "evaluation.metrics": (lambda name: EvaluationConfig(metrics=[name]), METRICS),
    "metric_of_users": (lambda name: metric_of_users(name, 5, NONE, NONE, NONE), METRICS),
    "user_metric": (user_metric, METRICS),
}


@pytest.mark.parametrize("where", NAMED)
def test_unknown_names_in_settings_and_calls(own, where):
    call, registry = NAMED[where]
    with refused(f"{registry.setting}='recal': no such {registry.what}; ", ships(registry)):
        call("recal")
    with refused(f"{registry.setting}='no_such_module:Kind'", ships(registry)):
        call("no_such_module:Kind")
    with refused(f"{registry.setting}='{own}:NUMBER'", ships(registry)):
        call(f"{own}:NUMBER")


@pytest.mark.parametrize("name", ["recal@20", "no_such_module:metric@20", "kinds_of_mine:places@20"])
def test_the_metric_that_chooses_the_epoch_is_one_of_the_evaluation(own, name):
    with refused(f"evaluation.select_by={name!r}: expected METRIC@K with METRIC one of {', '.join(METRICS.names)}"):
        EvaluationConfig(select_by=name)


def test_a_loss_that_ships_has_a_weight_of_its_own():
    with refused("distill.losses: pair has a setting of its own; set distill.pair_weight=2 in place of it"):
        DistillationConfig(losses={"pair": 2})
