"""The teacher and the labels of another run, which a run's student learns from (`labels.run`)."""

from ...core.artifact import manifest_digest, read_manifest
from ...core.storage import join
from ...distributed.artifacts.teacher import revision_digest
from ...distributed.labels.files import check_labels, labels_url
from ...distributed.tasks.ensemble import check_of_dataset
from ...graph_store.dataset import Dataset
from ..settings import Settings
from .stages import Record, run_stage
from .worker_jobs import student_job


def take_over(settings: Settings, dataset: Dataset, verb: str) -> Record:
    """Records that a stage of this run is what another run has made: it is refused later where that has changed.

    Args:
        settings: Of the run; `labels.run` names the other one.
        dataset: The run's.
        verb: "train-teacher" or "label".

    Raises:
        InputError: the other run's teacher or labels are not there, its teacher was trained on another dataset, or its labels were made
            with other settings than this run has.
    """
    url = join(settings.teacher_dir, "teacher")
    check_of_dataset(url, read_manifest(url, "teacher"), dataset)
    written = labels_url(settings.teacher_dir, 0)
    labels = read_manifest(written, "labels")
    job = student_job(settings, dataset, 0).label_job()
    check_labels(written, labels, job, f"give this run the settings that the labels of labels.run={settings.labels.run} were made with")
    digest = revision_digest(url, 0) if verb == "train-teacher" else manifest_digest(labels)
    return run_stage(settings, verb, {"run": settings.teacher_dir, "digest": digest}, lambda: {"run": settings.teacher_dir})
