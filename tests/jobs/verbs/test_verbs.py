"""The table of verbs agrees with the stages of a run, and an own verb is one like those that ship."""

import dataclasses
import re

import pytest
from promptmm.core.errors import InputError
from promptmm.core.storage import read_json, write_bytes
from promptmm.jobs.config import Settings
from promptmm.jobs.runs.stages import read_record, run_stage
from promptmm.jobs.sections import STAGES
from promptmm.jobs.settings import load_settings
from promptmm.jobs.verbs import VERBS, Verb, find_verb, run_verb
from promptmm.jobs.verbs.products import PRODUCTS
from promptmm.jobs.verbs.table import OWN_VERBS
from promptmm.jobs.verbs.train_teacher import TRAIN_TEACHER
from promptmm.jobs.verbs.verb import run_checked

OWN = """
from promptmm.core.storage import write_json
from promptmm.jobs.verbs import Verb


def sizes(settings):
    \"\"\"Writes the sizes of the two models.\"\"\"
    write_json(f"{settings.dir}/sizes.json", {"teacher": settings.teacher.dim, "student": settings.student.dim})


SIZES = Verb("sizes", sizes, ("run", "teacher", "student"), needs=("prepare",))
NOTHING = 3
"""


@pytest.fixture
def own_module(write_own_module) -> str:
    """A module of the user's in the current folder; returns its name."""
    return write_own_module(OWN)


def test_the_stages_of_the_table_are_those_that_may_be_done_again():
    assert tuple(PRODUCTS) == STAGES
    assert [verb.name for verb in VERBS.values() if verb.is_stage] == [*STAGES]
    for stage in STAGES:
        assert load_settings(None, [f"run.redo={stage}"]).run.redo == stage


def test_every_verb_reads_sections_that_there_are_and_needs_stages_before_it():
    sections = set(Settings.__dataclass_fields__)
    for verb in VERBS.values():
        assert set(verb.sections) <= sections
        assert verb.help.endswith(".")
        assert all(STAGES.index(needed) < STAGES.index(verb.name) for needed in verb.needs)


@pytest.mark.parametrize("name", VERBS)
def test_a_verb_that_ships_is_named_like_an_own_one(name):
    assert OWN_VERBS.get(name) is VERBS[name] is find_verb(name)


def test_an_own_verb_is_found_in_the_current_folder(own_module, command, tiny, tmp_path):
    words = (f"{own_module}:SIZES", tiny, f"run.dir={tmp_path}/run")
    early = command(*words)
    assert early.code == 2
    assert "sizes needs what prepare leaves in" in early.err
    assert command("prepare", *words[1:]).code == 0
    assert command(*words, "teacher.dim=16").code == 0
    assert read_json(f"{tmp_path}/run/sizes.json") == {"teacher": 16, "student": 8}
    assert "dim: 16" in (tmp_path / "run" / "config.yaml").read_text()  # a section that it reads
    help = command(f"{own_module}:SIZES", "--help")
    assert "Writes the sizes of the two models." in help.out
    assert "teacher.dim (int, default 64)" in help.out
    assert "\n  cluster." not in help.out
    refused = command(*words, "run.redo=partition")
    assert "run.redo=partition: sizes does not do that verb again" in refused.err


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("train", "unknown verb 'train'; the verbs are generate, prepare"),
        ("{own}:NOTHING", "NOTHING is not an object of promptmm.jobs.verbs.Verb; the kinds that ship are generate, prepare"),
        ("{own}:sizes", "sizes is not an object of promptmm.jobs.verbs.Verb"),
        ("{own}:ABSENT", "has no ABSENT; the kinds that ship are generate, prepare"),
        ("nowhere:VERB", "there is no module 'nowhere' here"),
        (":VERB", "no such verb; the kinds that ship are generate, prepare"),
    ],
)
def test_what_is_no_verb_is_refused_with_those_that_are(own_module, command, name, message):
    ended = command(name.format(own=own_module), "demo")
    assert ended.code == 2
    assert message in ended.err
    assert "Traceback" not in ended.err


def test_a_verb_that_needs_what_is_no_stage_is_refused():
    with pytest.raises(InputError, match=re.escape("verb mine: needs=preparation: expected some of prepare, partition")):
        Verb("mine", lambda settings: None, ("run",), needs=("preparation",))


def test_a_verb_does_not_do_another_one_again(tmp_path):
    with pytest.raises(InputError, match=r"run.redo=prepare: plan does not do that verb again; use it with prepare or pipeline"):
        run_verb("plan", load_settings(None, [f"run.dir={tmp_path}", "run.redo=prepare"]))


@pytest.mark.parametrize("leaves", [False, True])
def test_a_stage_that_is_refused_before_it_made_anything_leaves_no_record(leaves, tmp_path):
    settings = load_settings(None, [f"run.dir={tmp_path}"])

    def refused() -> None:
        if leaves:
            write_bytes(f"{tmp_path}/teacher/vectors", b"of the first attempt")
        raise InputError("the catalog has no modality 'sound'")

    def train(settings: Settings) -> None:
        run_stage(settings, "train-teacher", {"dim": settings.teacher.dim}, refused)

    with pytest.raises(InputError, match="no modality 'sound'"):
        run_checked(dataclasses.replace(TRAIN_TEACHER, run=train, needs=()), settings)
    assert (read_record(settings.dir, "train-teacher") is not None) == leaves
