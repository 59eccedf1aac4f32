"""Keeps labels by user: what the teacher scores for a user is stored once, and every epoch's lists are drawn from it (docs/method.md 3.7).

For each range of users a file holds the scores of each user's train items, of the items of the user's ranking, and of a pool of uniform
unseen items. A student draws a list for each example from them as a function of seed, epoch and example. So the volume does not grow with
epochs, and students of other sizes, seeds and batches read the same labels.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from ...core.artifact import open_artifact
from ...core.objectives import Labels, candidate_policy
from ...core.sampling import STREAM_POOL, UnseenItems, check_unseen
from ...core.train_pairs import TrainPairs
from ...graph_store.dataset import Dataset
from ..messages import LabelJob
from . import parts
from .blocks import by_step, item_dtype, range_of
from .encoding import EncodedScores, encode
from .files import Work, check_labels, labels_url
from .rankings import in_ranges, open_rankings, users_of_range
from .teacher_scores import scores_of

USERS_AT_A_TIME = 1 << 12


class UserLabeler:
    """Makes the labels of ranges of users.

    Args:
        job: The job that says what to label.
        dataset: The run's dataset.

    Raises:
        InputError: candidates are drawn from the teacher's rankings, and these are not there; or a user has seen every item.
    """

    def __init__(self, job: LabelJob, dataset: Dataset) -> None:
        self.job, self.train = job, dataset.rows("train")
        check_unseen(self.train)
        self.scores = scores_of(job, self.train)
        self.ranked = open_rankings(job.rankings, dataset, has_scores=True) if job.rankings is not None else None

    def write(self, url: str, work: Work) -> None:
        """Writes the file of a range, `work["range"]`, and notes that it is made."""
        users = users_of_range(work["range"], self.train.num_rows)
        first, last = (int(self.train.pointers[at]) for at in (users[0], users[-1] + 1))
        tensors = self._tensors(users.numel(), last - first)
        with parts.tensors(url, range_name(work["range"]), tensors, {"rows": users.numel()}) as arrays:
            arrays["starts"][:] = self.train.pointers[users[0] : users[-1] + 2] - first
            for ids in users.split(USERS_AT_A_TIME):
                self._fill(arrays, ids, int(ids[0] - users[0]), int(self.train.pointers[ids[0]]) - first)

    def _tensors(self, num_users: int, num_positives: int) -> dict[str, tuple[str, tuple[int, ...]]]:
        """Describes the tensors of a range's file."""
        depth = 0 if self.ranked is None else self.ranked.width
        tensors: dict[str, tuple[str, tuple[int, ...]]] = {
            "starts": ("int64", (num_users + 1,)),
            "pool": (np.dtype(item_dtype(self.train.num_columns)).name, (num_users, self.job.pool)),
        }
        for name in self.scores.names:
            tensors[name] = (self.job.scores, (num_users, depth + self.job.pool))
            tensors[_positives_of(name)] = ("float16", (num_positives,))
            if self.job.scores == "uint8":
                tensors[range_of(name)] = ("float16", (num_users, 2))
        return tensors

    def _fill(self, arrays: dict[str, np.ndarray], users: Tensor, row: int, positive: int) -> None:
        """Fills in the labels of some users, which begin at a row and at a train item of the range."""
        train, rows = self.train.select(users), slice(row, row + users.numel())
        pool = UnseenItems(train, users).draw(torch.arange(users.numel()), users, self.job.pool, self.job.seed, 0, STREAM_POOL)
        of_pool = self.scores.scores(users, pool)
        of_rankings = self.ranked.scores_of(users) if self.ranked is not None else [scores[:, :0] for scores in of_pool]
        of_positives = self.scores.scores(users[train.rows], train.columns[:, None])
        arrays["pool"][rows] = pool.numpy()
        for name, *scores, positives in zip(self.scores.names, of_rankings, of_pool, of_positives):
            of_lists, middle = torch.cat(scores, 1), scores[1].mean(1)  # differences alone count, and float16 has digits for few others
            what = f"labels of the users from index {int(users[0])}: {name.replace('.', ' of ')}"
            encoded = encode((of_lists - middle[:, None]).numpy(), self.job.scores, what)
            arrays[name][rows] = encoded.values
            if encoded.ranges is not None:
                arrays[range_of(name)][rows] = encoded.ranges
            relative = encode((positives[:, 0] - middle[train.rows])[:, None].numpy(), "float16", what).values[:, 0]
            arrays[_positives_of(name)][positive : positive + len(relative)] = relative


def range_name(number: int) -> str:
    """Returns the name of a range's file below the labels' folder."""
    return f"users-{number:05d}.safetensors"


def _positives_of(name: str) -> str:
    return "positives" + name.removeprefix("scores")


@dataclass(frozen=True)
class _Range:
    """Reads the labels of a range of users, memory-mapped.

    Attributes:
        pool: Items [n, P].
        scores: Encoded scores of the rankings' items and the pool's, by scorer: [n, D + P].
        starts: int64 [n + 1], where each user's train items start among `positives`.
        positives: float16 [number of train items], by scorer.
    """

    pool: np.ndarray
    scores: list[EncodedScores]
    starts: np.ndarray
    positives: list[np.ndarray]

    @staticmethod
    def open(path: str, names: list[str]) -> "_Range":
        """Maps the file of a range; `names` are those of the scorers."""
        from safetensors.torch import load_file

        arrays = {name: tensor.numpy() for name, tensor in load_file(path).items()}
        scores = [EncodedScores(arrays[name], arrays.get(range_of(name))) for name in names]
        return _Range(arrays["pool"], scores, arrays["starts"], [arrays[_positives_of(name)] for name in names])

    def relative(self, rows: np.ndarray, places: np.ndarray, at: np.ndarray) -> list[np.ndarray]:
        """Returns the scores at some places of users' lists relative to that of a train item, float32 [n, k] by scorer.

        Args:
            rows: The users.
            places: [n, k].
            at: [n], the train item of each, as its place among the user's.
        """
        found = []
        for scores, positives in zip(self.scores, self.positives):
            ranges = None if scores.ranges is None else scores.ranges[rows]
            values = EncodedScores(scores.values[rows[:, None], places], ranges).decode()
            found.append(values - positives[self.starts[rows] + at].astype(np.float32)[:, None])
        return found


class UserLabels:
    """Draws a student's labels from what is stored for users; see `LabelSource`.

    Args:
        run_url: The folder of the run that made the labels.
        job: The job of this worker's share of the labels.
        modalities: Names of the teacher's modalities, in its order.
        dataset: The run's dataset.

    Raises:
        InputError: the labels are missing or damaged, or were made with other settings.
    """

    def __init__(self, run_url: str, job: LabelJob, modalities: list[str], dataset: Dataset) -> None:
        url = labels_url(run_url, job.revision)
        folder, manifest = open_artifact(url, "labels", job.cache_dir)
        check_labels(url, manifest, job)
        self.job, self.train = job, dataset.rows("train")
        self.pairs = TrainPairs.of(self.train, job.draw_seed, job.examples)
        self.policy, self.num_modalities = candidate_policy(job.config), len(modalities)
        self._ranked = open_rankings(job.rankings, dataset) if job.rankings is not None else None
        names = ["scores", *(f"scores.{m}" for m in modalities)]
        self._ranges: list[_Range] = [_Range.open(str(folder / name), names) for name in sorted(manifest["files"])]

    def order_epoch(self, epoch: int) -> int:
        """See `LabelSource`."""
        return epoch

    def epoch(self, epoch: int) -> Iterator[tuple[int, Labels]]:
        """See `LabelSource`."""
        for steps in self.job.runs_of(range(self.job.num_steps)):
            labels = self._labels(epoch, *self.pairs.at(epoch, self.job.places_of(steps)))
            yield from by_step(labels, steps, self.job)

    def _labels(self, epoch: int, examples: Tensor, users: Tensor, positives: Tensor) -> Labels:
        depth, pool = 0 if self._ranked is None else self._ranked.width, self.job.pool
        of_pool, of_ranking = self.policy.draw_stored(examples, pool, depth, self.job.draw_seed, epoch)
        stored_depth = self._ranges[0].scores[0].values.shape[1] - pool
        places = torch.cat([stored_depth + of_pool, of_ranking], 1).numpy()
        at = self._places_of(users, positives).numpy()
        drawn = np.empty(of_pool.shape, np.int64)
        scores = np.zeros((1 + self.num_modalities, users.numel(), 1 + places.shape[1]), np.float32)
        for number, here, rows in in_ranges(users, len(self._ranges[0].pool)):
            of_range, chosen, row = self._ranges[number], here.numpy(), rows.numpy()
            drawn[chosen] = of_range.pool[row[:, None], of_pool.numpy()[chosen]]
            for scorer, values in enumerate(of_range.relative(row, places[chosen], at[chosen])):
                scores[scorer, chosen, 1:] = values
        candidates = [positives[:, None], torch.from_numpy(drawn)]
        if self._ranked is not None:
            candidates.append(self._ranked.at(users, of_ranking))
        found = torch.from_numpy(scores)
        return Labels(users, torch.cat(candidates, 1), found[0], found[1:])

    def _places_of(self, users: Tensor, positives: Tensor) -> Tensor:
        """Returns the places of positives among their users' train items, int64 [n]."""
        distinct, rows = torch.unique(users, return_inverse=True)
        train = self.train.select(distinct)
        keys = train.rows * train.num_columns + train.columns
        return torch.searchsorted(keys, rows * train.num_columns + positives) - train.pointers[rows]

    def close(self) -> None:
        """Does nothing: nothing makes labels meanwhile."""
