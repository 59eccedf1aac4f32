"""What makes a run resumable by its name: every verb records what it was made with and whether it is done."""

import time
from collections.abc import Callable
from typing import Any

from ..core.errors import InputError
from ..core.storage import exists, join, read_json, remove, write_json
from ..distributed.labels import labels_url
from ..distributed.teacher_artifact import revision_url
from ..graph_store.sources.folder import check_folder
from ..graph_store.sources.kinds import source_of
from .settings import VERBS, Settings

# What each verb leaves in the run's folder, beside its record.
PRODUCTS: dict[str, tuple[str, ...]] = {
    "prepare": ("dataset",),
    "partition": ("graph",),
    "plan": ("plan.json",),
    "train-teacher": ("teacher", "training/teacher"),
    "label": ("labels",),
    "distill": ("training/student",),
    "evaluate": ("results.json", "report.md", "plots"),
    "export": ("student",),
    "recommend": (),
}


def record_url(run_dir: str, verb: str) -> str:
    """Where a verb's record is."""
    return join(run_dir, "stages", f"{verb}.json")


def read_record(run_dir: str, verb: str) -> dict | None:
    """A verb's record, or None where it never started here."""
    url = record_url(run_dir, verb)
    return read_json(url) if exists(url) else None


def require_done(run_dir: str, verb: str, needed_by: str) -> dict:
    """The record of a finished verb.

    Raises:
        InputError: it has not finished here.
    """
    record = read_record(run_dir, verb)
    if record is None or not record["done"]:
        raise InputError(
            f"{needed_by} needs what {verb} leaves in {run_dir}, and {verb} has not finished there; run it, or `pipeline`, first"
        )
    return record


def run_stage(settings: Settings, verb: str, made_with: dict, make: Callable[[], Any]) -> dict:
    """Does a verb unless it is already done with the same inputs; returns its record.

    Args:
        verb: The verb.
        made_with: Everything that decides its result: settings and checksums of inputs, as JSON-able values.
        make: Does the work; what it returns (JSON-able) is kept in the record.

    Raises:
        InputError: the verb was started here with other inputs; the message names them.
    """
    url, record = record_url(settings.dir, verb), read_record(settings.dir, verb)
    if record is not None:
        changed = differences(record["made_with"], made_with)
        if changed:
            raise InputError(
                f"{settings.dir}: {verb} was started here with " + "; ".join(changed) + f". Use another run.dir, or add run.redo={verb}"
            )
        if record["done"]:
            print(f"[{verb}] already done", flush=True)
            return record
    spent = record["seconds"] if record else 0.0
    write_json(url, {"made_with": made_with, "done": False, "seconds": spent, "result": None})
    started = time.monotonic()
    try:
        result = make()
    except BaseException:
        spent += time.monotonic() - started
        write_json(url, {"made_with": made_with, "done": False, "seconds": spent, "result": None})
        raise
    record = {"made_with": made_with, "done": True, "seconds": spent + time.monotonic() - started, "result": result}
    write_json(url, record)
    print(f"[{verb}] done in {record['seconds']:.1f} s", flush=True)
    return record


def differences(old: Any, new: Any, name: str = "") -> list[str]:
    """`name=old (now new)` for every leaf that differs."""
    if isinstance(old, dict) and isinstance(new, dict):
        found = []
        for key in [*old, *(k for k in new if k not in old)]:
            found += differences(old.get(key), new.get(key), f"{name}.{key}" if name else key)
        return found
    return [] if old == new else [f"{name}={old} (now {new})"]


def forget_from(settings: Settings) -> None:
    """Removes the results of `run.redo` and of every verb after it."""
    if settings.run.redo is None:
        return
    if settings.run.redo == "prepare" and source_of(settings.source.format).needs_path:
        check_folder(settings.source)  # before anything is removed
    for verb in VERBS[VERBS.index(settings.run.redo) :]:
        for product in PRODUCTS[verb]:
            remove(join(settings.dir, product))
        if verb == "distill":
            _forget_later_revisions(settings.dir)
        remove(record_url(settings.dir, verb))


def _forget_later_revisions(run_dir: str) -> None:
    """Removes what prompt-tuning made: every revision but the first, and its labels. Rounds are counted by the revisions there are."""
    last = 0
    while exists(revision_url(join(run_dir, "teacher"), last + 1)):
        last += 1
    for revision in range(last, 0, -1):  # the last first: what an interruption leaves is still counted from the first
        remove(labels_url(run_dir, revision))
        remove(revision_url(join(run_dir, "teacher"), revision))
