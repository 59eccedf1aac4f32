"""The states of distillation in rounds, and their record, which outlives whatever runs them.

    label 0 -> distil 0 -> tune 0 -> label 1 -> distil 1 -> ... -> done

`label r` makes what the student learns from at revision r of the prompt, `distil r` trains the student on it, and `tune r` tunes the prompt
against that student, which gives revision r + 1. No tuning follows the last round. `training/student/rounds.json` has the state that is
worked on and every transition, written before the work of the new state begins (docs/formats.md 7). A command that was killed goes on
there; where the files in the run's folder say otherwise, these count, and the record says why it moved.
"""

import time
from dataclasses import dataclass, replace

from ...core.artifact import has_artifact, read_manifest
from ...core.errors import InputError
from ...core.storage import JsonObject, exists, filesystem, join, read_json, remove, write_json
from ...distributed.artifacts.teacher import revision_digest, revision_url
from ...distributed.loop.stage import stage_url
from ..settings import Settings
from .labels import has_labels, is_materialised

LABEL, DISTIL, TUNE, DONE = "label", "distil", "tune", "done"
STEPS = (LABEL, DISTIL, TUNE, DONE)
RECORD = "rounds.json"


@dataclass(frozen=True)
class State:
    """What is done, and the revision of the prompt that it is done at; `State("tune", 0)` is written "tune 0"."""

    step: str
    revision: int

    def __str__(self) -> str:
        return f"{self.step} {self.revision}"

    @staticmethod
    def of(text: str) -> "State":
        """Reads a state as `str` writes it."""
        step, _, revision = text.partition(" ")
        if step not in STEPS or not revision.isdigit():
            expected = " or ".join(f"{step} R" for step in STEPS)
            raise InputError(f"rounds.json has the state {text!r}, expected {expected} with a revision R: add run.redo=distill")
        return State(step, int(revision))

    def next(self, rounds: int) -> "State":
        """Returns the state that follows when the work of this one is complete."""
        assert self.step != DONE, "nothing follows"
        if self.step == LABEL:
            return State(DISTIL, self.revision)
        if self.step == TUNE:
            return State(LABEL, self.revision + 1)
        return State(TUNE if self.revision + 1 < rounds else DONE, self.revision)


@dataclass(frozen=True)
class Rounds:
    """A run's rounds: the state that is recorded, and the transitions that led to it.

    Attributes:
        settings: Of the run.
        taught: Whether the student learns from a teacher.
        state: What is to be done now.
        transitions: Every transition so far: `from` (null for the first), `to`, `at` (UTC), and `because` where it was not that the work of
            a state was complete.
    """

    settings: Settings
    taught: bool
    state: State
    transitions: tuple[JsonObject, ...] = ()

    @property
    def number(self) -> int:
        """Returns the number of rounds: one without a teacher, whose prompt could be tuned."""
        return self.settings.distill.rounds if self.taught else 1

    @staticmethod
    def open(settings: Settings, taught: bool) -> "Rounds":
        """Reads the record of a run, or begins one, and settles it with what is in the run's folder.

        Args:
            settings: Of the run.
            taught: Whether the student learns from a teacher.

        Raises:
            InputError: the record is of another number of rounds.
        """
        url, rounds = rounds_url(settings.dir), Rounds(settings, taught, State(LABEL, 0))
        if exists(url):
            found = read_json(url)
            if found["rounds"] != rounds.number:
                raise InputError(f"{url}: begun with distill.rounds={found['rounds']} (now {rounds.number}); add run.redo=distill")
            rounds = replace(rounds, state=State.of(found["state"]), transitions=tuple(found["transitions"]))
        else:
            first, because = rounds.first()
            rounds = replace(rounds, state=first)._written(None, because)
        while (moved := rounds.contradiction()) is not None:
            rounds = rounds._to(*moved)
        return rounds

    def advance(self) -> "Rounds":
        """Records that the work of the state is complete; returns the rounds at the next state."""
        following = self.state.next(self.number)
        if following.step == TUNE:  # so that a revision that is complete in this state was made in it
            remove(revision_url(join(self.settings.dir, "teacher"), following.revision + 1))
        return self._to(following)

    def withdraw(self) -> None:
        """Removes the record where the student's training has left nothing else, so that a refused attempt leaves nothing at all."""
        url = stage_url(self.settings.dir, "student")
        fs, path = filesystem(url)
        if fs.exists(path) and [entry.rsplit("/", 1)[-1] for entry in fs.ls(path, detail=False)] == [RECORD]:
            remove(url)

    def _to(self, state: State, because: str | None = None) -> "Rounds":
        return replace(self, state=state)._written(self.state, because)

    def _written(self, before: State | None, because: str | None) -> "Rounds":
        """Writes the record with the transition to its state, in one piece."""
        at = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
        transition: JsonObject = {"from": None if before is None else str(before), "to": str(self.state), "at": at}
        if because is not None:
            transition["because"] = because
            print(f"[distill] goes on at {self.state}: {because}", flush=True)
        record = replace(self, transitions=(*self.transitions, transition))
        content = {"rounds": self.number, "state": str(self.state), "transitions": list(record.transitions)}
        write_json(rounds_url(self.settings.dir), content)
        return record

    def first(self) -> tuple[State, str | None]:
        """Returns the state of a run without a record: the first one, or that of an earlier version, which counted revisions; and why."""
        if not exists(join(stage_url(self.settings.dir, "student"), "checkpoints")):
            return State(LABEL, 0), None
        revision = 0
        while revision + 1 < self.number and self.is_tuned(revision + 1):
            revision += 1
        return State(LABEL, revision), "training began before there was a record of rounds"

    def contradiction(self) -> tuple[State, str] | None:
        """Returns the state that the files in the run's folder call for, and why; None where they agree with the recorded one."""
        step, revision, settings = self.state.step, self.state.revision, self.settings
        if step == TUNE and self.is_tuned(revision + 1):
            return self.state.next(self.number), f"revision {revision + 1} is complete"
        if revision and step != DONE and not self.is_tuned(revision):
            return State(TUNE, revision - 1), f"revision {revision} is not complete"
        if step == DISTIL and self.taught and is_materialised(settings) and not has_labels(settings, revision):
            return State(LABEL, revision), f"the labels of revision {revision} are not complete"
        if step == DONE and not has_artifact(join(stage_url(settings.dir, "student"), "model")):
            return State(DISTIL, revision), "the trained student is not complete"
        return None

    def is_tuned(self, revision: int) -> bool:
        """Whether a revision is complete, and was tuned from the one before it that is there."""
        teacher = join(self.settings.dir, "teacher")
        url, before = revision_url(teacher, revision), revision_url(teacher, revision - 1)
        if not has_artifact(url):
            return False
        tuned_from = read_manifest(url, "teacher-vectors").get("tuned_from")  # earlier versions left it out
        return tuned_from is None or (has_artifact(before) and tuned_from == revision_digest(teacher, revision - 1))


def rounds_url(run_dir: str) -> str:
    """Returns the URL of the record of a run's rounds."""
    return join(stage_url(run_dir, "student"), RECORD)
