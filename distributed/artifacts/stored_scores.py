"""Opens the final scores of a trained model where they are stored, so that every process reads them itself and nobody sends any."""

from collections.abc import Callable
from dataclasses import replace

from ...core.agreement import Scores
from ...core.artifact import open_artifact
from ...core.graph import Csr
from ...core.sides import ITEMS, USERS
from ...core.storage import join
from ..loop.stage import stage_url
from ..messages import StoredScores
from .teacher import final_scores


def open_scores(stored: StoredScores, train: Callable[[], Csr], cache_dir: str | None = None) -> Scores:
    """Verifies and opens final scores; their vectors are memory-mapped, but for items where some are changed.

    Args:
        stored: Names the scores.
        train: Returns the train items of all users; called where a teacher scores histories.
        cache_dir: Folder for local copies of remote artifacts.

    Raises:
        InputError: the model is missing or damaged.
    """
    if stored.model == "teacher":
        found = final_scores(join(stored.run_url, "teacher"), 0, train, cache_dir)
        scores = Scores(found.rows[USERS].whole(), found.rows[ITEMS].whole(), found.histories)
    else:
        scores = _student_scores(stored.run_url, cache_dir)
    if stored.changed is None:
        return scores
    items = scores.items.clone()
    items[stored.changed[0]] = stored.changed[1]
    return replace(scores, items=items)


def _student_scores(run_url: str, cache_dir: str | None) -> Scores:
    from safetensors.torch import load_file

    wanted = "vectors.safetensors"
    folder, _ = open_artifact(join(stage_url(run_url, "student"), "model"), "student-model", cache_dir, lambda name: name == wanted)
    vectors = load_file(str(folder / wanted))
    return Scores(vectors["user"], vectors["item"])
