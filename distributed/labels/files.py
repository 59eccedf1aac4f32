"""Names the folder of a revision's labels and the work that makes its files, and checks whose labels they are."""

from ...core.errors import InputError
from ...core.storage import JsonObject, join
from ..artifacts.teacher import revision_digest, revision_url
from ..messages import LabelJob
from .rankings import rankings_digest, rankings_url

Work = dict[str, int]  # what a labeler is asked for: `epoch` and `block`, or `range`
LAYOUTS = {"examples": "blocks of examples, 2", "users": "users, 1"}  # of the files, in the manifest; earlier versions named none
DEEPER = "top_depth"  # labels by user with a deeper ranking than is asked for serve, too


def labels_url(run_url: str, revision: int) -> str:
    """Returns the URL of a revision's materialised labels."""
    return join(run_url, "labels", f"rev-{revision}")


def check_labels(url: str, manifest: JsonObject, job: LabelJob, advice: str = "run label again") -> None:
    """Checks that labels are those that a job asks for.

    Args:
        url: The labels' folder.
        manifest: Their manifest.
        job: The job.
        advice: What to do where they are others.

    Raises:
        InputError: they are of an earlier version, of another revision or teacher, were made with other settings, or hold places in other
            rankings than those that are there.
    """
    if "layout" not in manifest:
        raise InputError(f"{url}: labels of an earlier version, which kept them otherwise; make them again with run.redo=label")
    wanted = {"revision": job.revision, "layout": LAYOUTS[job.by], "encoding": job.scores, **job.candidates()}
    if job.by == "examples":
        wanted["num_examples"] = job.num_examples
    for name, expected in wanted.items():
        found = manifest.get(name)
        is_deeper = job.by == "users" and name == DEEPER and found is not None and found > expected
        if found != expected and not is_deeper:
            raise InputError(f"{url}: {name} is {found}, {expected} expected; {advice}")
    if "teacher" in manifest and manifest["teacher"] != revision_digest(job.teacher_url, job.revision):
        raise InputError(
            f"{url}: these labels are of another teacher than {revision_url(job.teacher_url, job.revision)}, whose vectors the student "
            "would learn from beside them; make them again with run.redo=label"
        )
    if job.rankings is not None and manifest.get("rankings") != rankings_digest(job.rankings):
        raise InputError(
            f"{url}: these labels refer to places in other rankings than {rankings_url(job.rankings)}, which were made again since; make "
            "the labels again with run.redo=label"
        )
