"""What makes a run resumable by its name: every stage records what it was made with and whether it is done.

A record is stages/<verb>.json in the run's folder:

    {"made_with": {"teacher": {"dim": 64, ...}, "dataset": "<checksum>"}, "done": true, "seconds": 12.5, "result": {"best_epoch": 7, ...}}

A stage that is done with the same inputs is not repeated; one that was started with other inputs is refused, with their names.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from ...core.config import as_dict
from ...core.errors import InputError
from ...core.redaction import redacted_tree
from ...core.storage import JsonObject, exists, join, read_json, remove, write_json
from ...distributed.artifacts.teacher import revision_url
from ...distributed.labels.files import labels_url
from ...graph_store.sources.folder import check_folder
from ...graph_store.sources.kinds import source_of
from ..sections import STAGES
from ..settings import CONFIGURATION, Settings
from .lineage import up_to_date


@dataclass(frozen=True)
class Record:
    """What a stage left of itself in stages/<verb>.json.

    Attributes:
        made_with: Everything that decides its result: settings and checksums of inputs, as JSON-able values.
        done: Whether it has finished.
        seconds: Time that all its attempts took together.
        result: What it returned, JSON-able; None before it has finished.
    """

    made_with: JsonObject
    done: bool
    seconds: float = 0.0
    result: Any = None


def record_url(run_dir: str, verb: str) -> str:
    """Names the file of a stage's record."""
    return join(run_dir, "stages", f"{verb}.json")


def read_record(run_dir: str, verb: str) -> Record | None:
    """Reads a stage's record; None where it never started here."""
    url = record_url(run_dir, verb)
    return Record(**read_json(url)) if exists(url) else None


def require_done(run_dir: str, verb: str, needed_by: str) -> Record:
    """Reads the record of a finished stage.

    Args:
        run_dir: The run's folder.
        verb: The stage's verb.
        needed_by: The verb that needs what it left, for the message.

    Raises:
        InputError: it has not finished here.
    """
    record = read_record(run_dir, verb)
    if record is None or not record.done:
        raise InputError(
            f"{needed_by} needs what {verb} leaves in {run_dir}, and {verb} has not finished there; run it, or `pipeline`, first"
        )
    return record


class ChangedInputsError(InputError):
    """Says that a stage was started in a folder with other inputs, and what to do.

    Attributes:
        found: What the inputs were and are, for a command that has other advice.
    """

    def __init__(self, found: str, advice: str) -> None:
        super().__init__(f"{found}. {advice}")
        self.found = found


def run_stage(settings: Settings, verb: str, made_with: JsonObject, make: Callable[[], object]) -> Record:
    """Does a stage unless it is already done with the same inputs; returns its record.

    Args:
        settings: Of the run.
        verb: The stage's verb.
        made_with: Everything that decides its result (see `lineage.py`).
        make: Does the work; what it returns (JSON-able) is kept in the record.

    Raises:
        ChangedInputsError: the stage was started here with other inputs; the message names them.
    """
    record, made_with = read_record(settings.dir, verb), redacted_tree(made_with)
    if record is not None:
        changed = differences(up_to_date(record.made_with, made_with), made_with, setting_defaults())
        if changed:
            saved = join(settings.dir, CONFIGURATION)
            as_before = f"; to go on as before, give the recipe {saved}" if exists(saved) else ""
            raise ChangedInputsError(
                f"{settings.dir}: {verb} was started here with {'; '.join(changed)}",
                f"Use another run.dir, or add run.redo={verb} to do it again with what is given now{as_before}",
            )
        if record.done:
            print(f"[{verb}] already done", flush=True)
            return record
    spent = record.seconds if record else 0.0
    begun = Record(made_with, False, spent)
    _write(settings.dir, verb, begun)
    started = time.monotonic()
    try:
        result = make()
    except BaseException:
        _write(settings.dir, verb, replace(begun, seconds=spent + time.monotonic() - started))
        raise
    record = Record(made_with, True, spent + time.monotonic() - started, result)
    _write(settings.dir, verb, record)
    print(f"[{verb}] done in {record.seconds:.1f} s", flush=True)
    return record


def _write(run_dir: str, verb: str, record: Record) -> None:
    write_json(record_url(run_dir, verb), asdict(record))


def setting_defaults() -> JsonObject:
    """The defaults of all settings, as a tree for `differences`."""
    return as_dict(Settings())


def differences(old: Any, new: Any, defaults: Any = None, name: str = "") -> list[str]:
    """Lists `name=old (now new)` for every leaf that differs between two trees of JSON-able values.

    Args:
        old, new: The trees.
        defaults: A tree of values for keys that `old` lacks: a record of an earlier version says nothing of settings that came after it,
            and was made as their defaults have it.
        name: Dotted name of the trees' root, for the messages.
    """
    if not isinstance(old, dict) or not isinstance(new, dict):
        return [] if old == new else [f"{name}={old} (now {new})"]
    known = defaults if isinstance(defaults, dict) else {}
    changed = []
    for key in [*old, *(key for key in new if key not in old)]:
        default = known.get(key)
        changed += differences(old.get(key, default), new.get(key), default, f"{name}.{key}" if name else key)
    return changed


def forget_from(settings: Settings, products: Mapping[str, Sequence[str]]) -> None:
    """Removes the results of the stage that `run.redo` names and of every stage after it.

    Args:
        settings: Of the run.
        products: What every stage leaves in the run's folder beside its record, by verb.

    Raises:
        InputError: the source is not there, so that prepare could not be done again; nothing is removed then.
    """
    if settings.run.redo is None:
        return
    if settings.run.redo == "prepare" and settings.source.joined is None and source_of(settings.source.format).needs_path:
        check_folder(settings.source)  # before anything is removed
    for verb in STAGES[STAGES.index(settings.run.redo) :]:
        for product in products[verb]:
            remove(join(settings.dir, product))
        if verb == "distill":
            _forget_later_revisions(settings.dir)
        remove(record_url(settings.dir, verb))


def _forget_later_revisions(run_dir: str) -> None:
    """Removes what prompt-tuning made: every revision but the first, and its labels."""
    last = 0
    while exists(revision_url(join(run_dir, "teacher"), last + 1)):
        last += 1
    for revision in range(last, 0, -1):  # the last first, since they are found by counting from the first
        remove(labels_url(run_dir, revision))
        remove(revision_url(join(run_dir, "teacher"), revision))
