"""`promptmm pipeline`: every stage of a run, one after the other."""

import dataclasses
from collections.abc import Sequence
from typing import TYPE_CHECKING

from ...core.errors import InputError
from ...core.sides import USERS
from ...core.storage import JsonObject
from ...graph_store.dataset import Dataset
from ..planning.engine import engine_of, with_engine
from ..runs.compatibility import check_installed, check_teachable, check_teacher, has_teacher
from ..runs.executors import open_executor, require_packages
from ..runs.folder import open_run_dataset
from ..runs.report import cold_table, table
from ..runs.results import write_results
from ..runs.stages import read_record, require_done
from ..runs.worker_jobs import uses_graph
from ..settings import Settings
from .distill import DISTILL
from .evaluate import EVALUATE
from .export import EXPORT
from .label import LABEL
from .partition import PARTITION
from .plan import PLAN
from .prepare import PREPARE
from .recommend import RECOMMEND, check_output, named_users
from .train_teacher import TRAIN_TEACHER
from .verb import Verb, run_checked

if TYPE_CHECKING:
    import pyarrow as pa


def pipeline(settings: Settings) -> None:
    """All verbs; a verb that is already done is not done again."""
    if settings.distill.use_teacher:
        check_teacher(settings, settings.teacher.kind, settings.teacher.has_modality_vectors)
        check_installed(settings)
    require_packages(settings)
    run_checked(PREPARE, settings)
    dataset = open_run_dataset(settings)
    _check_catalog(settings, dataset)
    taught = has_teacher(settings, dataset)
    if taught:
        check_teachable(settings, dataset)
    training = (TRAIN_TEACHER, LABEL, DISTILL, EVALUATE) if taught else (DISTILL, EVALUATE)
    run_checked(PLAN, settings)  # before anything else works: it measures rates, and refuses what does not fit
    with open_executor(settings, dataset, expects_jobs=_trains(settings, training)) as executor:  # starts while partition works
        if _uses_graph(settings, dataset, taught):
            run_checked(PARTITION, settings)
        for verb in training:
            run_checked(verb, settings, executor)
    run_checked(EXPORT, settings)
    evaluated = require_done(settings.dir, "evaluate", "pipeline").result
    _show(settings, dataset, write_results(settings, dataset, evaluated))
    run_checked(RECOMMEND, settings)
    here = settings.dir
    print(f"\nresults: {here}/results.json, {here}/report.md; plots: {here}/plots; bundle to serve: {here}/student", flush=True)


def _uses_graph(settings: Settings, dataset: Dataset, taught: bool) -> bool:
    """Whether a stage of the run will read from graph/."""
    settled = with_engine(settings, engine_of(settings, dataset, "distill"))
    stages = ["distill", *(["train-teacher"] if taught else []), *(["tune-prompt"] if taught and settings.distill.rounds > 1 else [])]
    return any(uses_graph(settled, stage) for stage in stages)


def _trains(settings: Settings, verbs: Sequence[Verb[Settings]]) -> bool:
    """Whether a verb that trains has something left to do."""
    records = [read_record(settings.dir, verb.name) for verb in verbs if verb in (TRAIN_TEACHER, DISTILL)]
    return any(record is None or not record.done for record in records)


def _check_catalog(settings: Settings, dataset: Dataset) -> None:
    """Raises InputError for what the last verbs would refuse, before the first expensive one starts."""
    settings.evaluation.check_catalog(dataset.num_items)
    if settings.recommend.k > dataset.num_items:
        raise InputError(f"recommend.k={settings.recommend.k} is larger than the catalog of {dataset.num_items} items")
    check_output(settings)
    users = named_users(settings.recommend)
    unknown = _unknown_users(users, dataset) if users is not None else []
    if unknown:
        name = "users" if settings.recommend.users_from is None else "users_from"
        raise InputError(f"recommend.{name}: the catalog has no users {', '.join(unknown[:20])}")


def _unknown_users(users: "pa.Array", dataset: Dataset) -> list[str]:
    """Returns those of some raw user ids, large strings, that the catalog does not have, ascending; reads its ids a chunk at a time."""
    import pyarrow as pa
    import pyarrow.compute as pc

    known = [ids.filter(pc.is_in(ids, value_set=users)) for ids in dataset.id_chunks(USERS)]
    is_known = pc.is_in(users, value_set=pa.concat_arrays([pa.array([], pa.large_string()), *known]))
    unknown: list[str] = sorted(pc.unique(users.filter(pc.invert(is_known))).to_pylist())
    return unknown


def _show(settings: Settings, dataset: Dataset, results: JsonObject) -> None:
    """Prints the table, epochs that no validation chose, and the seconds of every verb."""
    cutoffs = settings.evaluation.cutoffs
    print("\n" + "\n\n".join([table(results, cutoffs), *cold_table(results, cutoffs)]), flush=True)
    for name in ("teacher", "student"):
        if results[name] is not None and not dataset.has_split("validation") and results[name]["best_epoch"] >= 0:
            print(f"{name}: no validation split, so no selection: epoch {results[name]['best_epoch']}, the last one", flush=True)
    print("seconds: " + ", ".join(f"{verb} {seconds:.1f}" for verb, seconds in results["timings"].items()), flush=True)


PIPELINE: Verb[Settings] = Verb(
    "pipeline",
    pipeline,
    tuple(field.name for field in dataclasses.fields(Settings) if field.name != "tune"),
    shares_storage=True,
    derives=True,
)
