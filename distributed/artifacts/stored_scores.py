"""Names the final scores of a trained model by where they are stored, so that processes open them where they work and send none of them."""

from collections.abc import Callable
from dataclasses import dataclass, replace

from torch import Tensor

from ...core.agreement import Scores
from ...core.artifact import open_artifact
from ...core.graph import Csr
from ...core.sides import ITEMS, USERS
from ...core.storage import join
from ..loop.stage import stage_url
from .teacher import final_scores


@dataclass(frozen=True)
class StoredScores:
    """Names the final scores of a run's teacher or student.

    Attributes:
        run_url: The run's folder.
        model: "teacher", at revision 0 of its prompt, or "student".
        changed: Items, int64 [n], and the vectors that they have in place of the stored ones, float32 [n, d]; None: none are changed.
    """

    run_url: str
    model: str
    changed: tuple[Tensor, Tensor] | None = None

    def open(self, train: Callable[[], Csr], cache_dir: str | None = None) -> Scores:
        """Verifies and opens the scores; their vectors are memory-mapped, but for items where some are changed.

        Args:
            train: Returns the train items of all users; called where a teacher scores histories.
            cache_dir: Folder for local copies of remote artifacts.

        Raises:
            InputError: the model is missing or damaged.
        """
        if self.model == "teacher":
            stored = final_scores(join(self.run_url, "teacher"), 0, train, cache_dir)
            scores = Scores(stored.rows[USERS].whole(), stored.rows[ITEMS].whole(), stored.histories)
        else:
            scores = _student_scores(self.run_url, cache_dir)
        if self.changed is None:
            return scores
        items = scores.items.clone()
        items[self.changed[0]] = self.changed[1]
        return replace(scores, items=items)


def _student_scores(run_url: str, cache_dir: str | None) -> Scores:
    from safetensors.torch import load_file

    wanted = "vectors.safetensors"
    folder, _ = open_artifact(join(stage_url(run_url, "student"), "model"), "student-model", cache_dir, lambda name: name == wanted)
    vectors = load_file(str(folder / wanted))
    return Scores(vectors["user"], vectors["item"])
