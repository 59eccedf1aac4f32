"""Runs a job on one worker: builds the job's task and hands it to an engine. Every executor calls it in each of its workers."""

import time
from collections.abc import Callable
from dataclasses import replace
from functools import cache, partial
from typing import cast

from ..core.errors import InputError
from ..core.graph import BipartiteGraph
from ..core.linear.base import LinearTeacher
from ..core.sides import ITEMS
from ..core.students import student_kind
from ..core.teacher import teacher_kind
from ..core.teacher.ensemble import in_part
from ..graph_store.own_features import ItemShard
from .artifacts.output import Output
from .engines.full.catalog import WholeCatalog, build_catalog
from .engines.full.trainer import FullTrainer
from .engines.validation import Validation
from .labels.blocks import Ranked
from .labels.rankings import open_rankings
from .labels.source import LabelSource, MaterialisedLabels, StreamedLabels
from .labels.user_labels import UserLabels
from .loop.selection import Selection, check_revision
from .loop.stage import Stage
from .loop.trainer import Trainer
from .messages import Job, StudentJob, TeacherJob, TuneJob
from .surroundings import Surroundings
from .tasks.base import Task
from .tasks.ensemble import add_up, component_jobs, is_finished, with_temperature
from .tasks.fitted_teacher import FittedTeacherTask, columns_in_words, summary, write_fitted
from .tasks.imported_teacher import ImportedTrainer
from .tasks.prompt_tuning import FixedStudent, PromptTuningTask, tune_prompt
from .tasks.student import StudentTask
from .tasks.teacher import PromptTeacherTask
from .tasks.tuning import PromptTuner, resident_config
from .tasks.whole_teacher import WholeTeacherTask
from .worker import Worker

Whole = tuple[BipartiteGraph, Callable[[], ItemShard]]  # the train graph, and what reads the features of the worker's items


def run_job(job: TeacherJob | StudentJob | TuneJob, worker: Worker, around: Surroundings) -> None:
    """Runs a job, from its last checkpoint on; a collective call.

    Args:
        job: The job.
        worker: This worker.
        around: How the worker reaches graph, labels and people.

    Raises:
        InputError: inputs do not fit together, or a file is missing or damaged.
        FloatingPointError: the loss is not finite.
    """
    if isinstance(job, TeacherJob):
        if teacher_kind(job.config).is_ensemble:
            _train_ensemble(job, worker, around)
        else:
            _train_teacher(job, worker, around)
    elif isinstance(job, StudentJob):
        resident = _resident(job, worker, around) if job.distill.has_resident_teacher else None
        tuner = PromptTuner.load(job, resident, worker) if resident is not None else None
        _train(job, student_task(job, worker, around, tuner), worker, around, resident)
    else:
        _tune(job.student, worker, around)


def student_task(job: StudentJob, worker: Worker, around: Surroundings, tuner: PromptTuner | None = None) -> StudentTask:
    """Returns the task of a student's job.

    Args:
        job: The student's job; its settings say where labels come from.
        worker: This worker.
        around: How the worker reaches streamed labels and people.
        tuner: The resident teacher whose prompt is tuned beside the student, if there is one.
    """

    def open_labels(modalities: list[str], epochs: range) -> LabelSource:
        labels = job.label_job(worker.rank, worker.world_size)

        def ranked() -> Ranked:
            assert labels.rankings is not None
            return open_rankings(labels.rankings, around.dataset).at

        if labels.by == "users":
            return UserLabels(job.labels_run_url, labels, modalities, around.dataset)
        if job.labels.mode == "materialised":
            return MaterialisedLabels(job.labels_run_url, labels, modalities, ranked)
        what = f"a block of labels from {around.labelers} (cluster.start_timeout)"
        return StreamedLabels(labels, modalities, around.stream_labels(labels, epochs), job.cluster.start_timeout, what, ranked)

    return StudentTask(job, worker, open_labels, tuner, cache(lambda: around.dataset.csr("train")), around.show)


def _resident(job: StudentJob, worker: Worker, around: Surroundings) -> WholeCatalog:
    """Builds the catalog of the run's teacher, for a worker that holds the teacher whole; collective."""
    config = resident_config(job)
    return build_catalog(worker, config, *around.graph.whole(worker, config.reads_features))


def _train_teacher(job: TeacherJob, worker: Worker, around: Surroundings, whole: Whole | None = None) -> None:
    """Trains, fits or takes over one model; `whole` is the graph of a full engine that is there already."""
    kind, catalog = teacher_kind(job.config), None
    if kind.is_imported:
        imported = ImportedTrainer(job, worker, around.dataset, around.show)
        _train_with(job, imported.write, imported, around)
        return
    if job.engine == "full":
        whole = whole or around.graph.whole(worker, job.config.reads_features)
        catalog = build_catalog(worker, job.config, *whole)
    if kind.is_fitted and catalog is None:
        _fit_over_shards(job, worker, around)
    elif kind.is_fitted:
        assert catalog is not None
        _fit(job, catalog, worker, around)
    else:
        _train(job, PromptTeacherTask(job, worker) if kind.has_towers else WholeTeacherTask(job, worker), worker, around, catalog)


def _train_ensemble(job: TeacherJob, worker: Worker, around: Surroundings) -> None:
    """Trains the components that are not finished, one after the other, and adds all of them up.

    In the full engine they share one graph; in the sampled one each has a connection of its own, whose tables end with it.
    """
    whole: Whole | None = None
    jobs = component_jobs(job)
    for number, name in enumerate(jobs):
        component = with_temperature(job, name, jobs)
        if worker.share(is_finished(component) if worker.is_first else None):
            continue
        if job.engine == "full" and not teacher_kind(component.config).is_imported:
            whole = whole or around.graph.whole(worker, job.config.reads_features)
        if worker.is_first:
            of_best = f"; temperature {component.config.temperature}" if component is not jobs[name] else ""
            around.show(f"[teacher] component {name}, {number + 1} of {len(jobs)}{of_best}")
        with in_part(job.config, name):
            _train_teacher(component, worker, around, whole)
    add_up(job, worker, around.dataset, around.show)


def _fit(job: TeacherJob, catalog: WholeCatalog, worker: Worker, around: Surroundings) -> None:
    """Fits a teacher in closed form; the epoch loop then validates it, and has no epoch."""
    validation = Validation.of(around.dataset, worker, catalog.graph.users, job.evaluation)
    task = FittedTeacherTask(job, worker, catalog, validation, around.show)
    _train_with(job, task.write, FullTrainer(task, catalog, validation), around)


def _fit_over_shards(job: TeacherJob, worker: Worker, around: Surroundings) -> None:
    """Fits a teacher over the sharded graph, with all its settings given."""
    from .engines.sampled.fitted import FittedTrainer

    config, started = job.config.linear, time.monotonic()
    settings = {name: getattr(config, name) for name in cast(type[LinearTeacher], teacher_kind(job.config)).reads}
    given = {name: value for name, value in settings.items() if value is not None}
    with around.graph.connect(worker) as connection:
        trainer = FittedTrainer(job, connection, worker, around.dataset)
        fit = {"settings": given, "chosen": [], "trials": 0}
        if worker.is_first:
            said = summary(given, columns_in_words(trainer.vectors[0].dim), time.monotonic() - started)
            around.show(f"[teacher] {job.config.kind} {said}")
        _train_with(job, partial(write_fitted, job, facts=fit), trainer, around)


def _train(job: TeacherJob | StudentJob, task: Task, worker: Worker, around: Surroundings, catalog: WholeCatalog | None) -> None:
    if job.engine == "sampled":
        from .engines.sampled.trainer import SampledTrainer

        with around.graph.connect(worker) as connection:
            _train_with(job, task.write, SampledTrainer(task, job, connection, worker, around.dataset), around)
    else:
        catalog = catalog or build_catalog(worker, None, *around.graph.whole(worker, False))
        validation = Validation.of(around.dataset, worker, catalog.graph.users, job.evaluation)
        _train_with(job, task.write, FullTrainer(task, catalog, validation), around)


def _train_with(job: TeacherJob | StudentJob, write: Callable[[Output, Selection], None], trainer: Trainer, around: Surroundings) -> None:
    """Trains in the epoch loop; writes the artifact where the job ends the stage, and a checkpoint otherwise."""
    stage, is_last = stage_of(job, around), isinstance(job, TeacherJob) or job.is_last
    revision = job.revision if isinstance(job, StudentJob) else 0
    epochs = stage.train(trainer, job.num_epochs if isinstance(job, TeacherJob) else job.stop_epoch, revision)
    if is_last:
        output = trainer.output()
        write(output, stage.selection)
        if isinstance(job, TeacherJob) and trainer.worker.is_first:
            what = "vectors"
            if output.histories:
                what = "vectors and similarities" if output.vectors["final"][ITEMS].dim else "similarities"
            stage.recorder.say(f"best: {stage.selection.chosen}; {what} of {around.dataset.num_items:,} items written")
    else:
        stage.save(trainer, epochs)  # the next round goes on from here
    trainer.worker.barrier()


def stage_of(job: Job, around: Surroundings) -> Stage:
    """Returns the job's training stage, with its recorder, selection and checkpoints."""
    select_by = job.evaluation.select_by if around.dataset.has_split("validation") else None
    ends_early = isinstance(job, TeacherJob) and job.ends_early
    return Stage(job.stage, job.run_url, job.train, select_by, around.show, job.trackers, job.cluster.cache_dir, ends_early)


def _tune(job: StudentJob, worker: Worker, around: Surroundings) -> None:
    """Tunes the prompt against the student of the newest checkpoint."""
    if job.engine == "sampled":
        _tune_over_shards(job, worker, around)
        return
    catalog = _resident(job, worker, around)
    trainer = FullTrainer(student_task(_restored(job), worker, around), catalog, None)
    epochs = load_student(job, trainer, around)
    users, items = (rows.detach() for rows in trainer.task.vectors(trainer.view())["final"])
    student = FixedStudent(cast(StudentTask, trainer.task), (users.__getitem__, items.__getitem__), epochs)
    task = PromptTuningTask(job, worker, student)
    tune_prompt(task, FullTrainer(task, catalog, None), around.show)


def _tune_over_shards(job: StudentJob, worker: Worker, around: Surroundings) -> None:
    """Tunes the prompt in the sampled engine: the student's final vectors stay in sharded tables, beside those of the teacher."""
    from .engines.sampled.trainer import SampledTrainer

    with around.graph.connect(worker) as connection:
        trainer = SampledTrainer(student_task(_restored(job), worker, around), job, connection, worker, None)
        epochs = load_student(job, trainer, around)
        users, items = trainer.infer()["final"]
        student, rankings = FixedStudent(cast(StudentTask, trainer.task), (users.pull, items.pull), epochs), job.label_job().rankings
        stored = None if rankings is None else open_rankings(rankings, around.dataset).__getitem__
        task = PromptTuningTask(job, worker, student, stored)
        tune_prompt(task, SampledTrainer(task, job, connection, worker, None), around.show)


def _restored(job: StudentJob) -> StudentJob:
    """Returns the job of a student whose learnt rows come from a checkpoint, so that no start is computed for them."""
    if not student_kind(job.config).learns_rows:
        return job
    config = replace(job.config, start="random", start_user_exponent=0.5, start_item_exponent=0.5, warm_start=False)
    return replace(job, config=config)


def load_student(job: StudentJob, trainer: Trainer, around: Surroundings) -> int:
    """Restores the newest checkpoint of the student that the job's round has trained; returns its number of epochs.

    Raises:
        InputError: there is none, or it learnt from labels of another revision.
    """
    facts = trainer.load(stage_of(job, around).checkpoints)
    if facts is None:
        raise InputError(f"{job.run_url}: no checkpoint of the student to tune the prompt against; add run.redo=distill")
    check_revision(facts["selection"]["revision"], range(job.revision, job.revision + 1), job.run_url)
    return facts["epochs"]
