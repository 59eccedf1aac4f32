"""Ranks the teacher's best unseen items of every user at a revision: once, by ranges of users, for all labelers, students and epochs.

`teacher/rev-<r>/rankings/` holds `users-<n>.safetensors` for each range of users, with the tensor `items` int32 [users of
the range, depth], best first (docs/formats.md). Ranking that was interrupted goes on after the ranges that are complete (`parts.py`).
"""

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ...core.artifact import SCHEMA_VERSION, has_artifact, open_artifact
from ...core.errors import InputError
from ...core.ranking import top_unseen
from ...core.sampling import check_unseen
from ...core.sides import ITEMS, USERS
from ...core.storage import JsonObject, join, read_json, write_bytes
from ...graph_store.dataset import Dataset
from ..artifacts.teacher import final_scores, revision_digest, revision_url
from ..messages import RankingJob
from . import parts

USERS_A_RANGE, MOST_RANGES = 1 << 14, 1 << 6  # a batch of examples reads from every range, so there are not many
KIND = "rankings"


def range_size(num_users: int) -> int:
    """Returns the number of users in a range of a catalog: 16,384, or as many as make 64 ranges."""
    return max(USERS_A_RANGE, -(-num_users // MOST_RANGES))


def num_ranges(num_users: int) -> int:
    """Returns the number of ranges of a catalog's users."""
    return -(-num_users // range_size(num_users))


def in_ranges(users: Tensor, size: int) -> Iterator[tuple[int, Tensor, Tensor]]:
    """Yields the ranges that users are in: the number of each, the users' places, int64 [n], and their rows in the range, int64 [n].

    Args:
        users: int64 [m].
        size: The number of users in a range.
    """
    order = torch.argsort(users, stable=True)
    numbers, counts = (users[order] // size).unique_consecutive(return_counts=True)
    for number, here in zip(numbers.tolist(), order.split(counts.tolist())):
        yield number, here, users[here] - number * size


def rankings_url(job: RankingJob) -> str:
    """Returns the URL of a revision's rankings."""
    return join(revision_url(job.teacher_url, job.revision), "rankings")


def made_with(job: RankingJob, dataset: Dataset) -> JsonObject:
    """Returns all that decides the rankings beside their depth."""
    return {"teacher": revision_digest(job.teacher_url, job.revision), "dataset": dataset.digest}


def has_rankings(job: RankingJob, dataset: Dataset) -> bool:
    """Whether complete rankings of the revision are there, as deep as the job asks for or deeper."""
    url = rankings_url(job)
    if not has_artifact(url):
        return False
    manifest = read_json(join(url, "manifest.json"))
    if (manifest.get("kind"), manifest.get("schema_version")) != (KIND, SCHEMA_VERSION):
        return False  # of another version: made again
    return manifest["depth"] >= job.depth and manifest["made_with"] == made_with(job, dataset)


def ranges_left(job: RankingJob, dataset: Dataset) -> list[int]:
    """Lists the ranges that are still to be ranked: all of them, but for those that an interrupted call has finished.

    Removes rankings that are complete, or that were begun with another teacher, dataset or depth.
    """
    url, wanted = rankings_url(job), {**made_with(job, dataset), "depth": job.depth, "users_a_range": range_size(dataset.num_users)}
    parts.begin(url, wanted)
    return [number for number in range(num_ranges(dataset.num_users)) if not parts.is_made(url, _name(number))]


def publish_rankings(job: RankingJob, dataset: Dataset) -> int:
    """Completes the rankings by their manifest, when all ranges are ranked; returns their bytes."""
    names = [_name(number) for number in range(num_ranges(dataset.num_users))]
    columns = parts.facts_of(rankings_url(job), names[0])["columns"] if names else 0
    metadata = {
        "depth": job.depth,
        "columns": columns,
        "users_a_range": range_size(dataset.num_users),
        "made_with": made_with(job, dataset),
    }
    return sum(int(of_range["bytes"]) for of_range in parts.publish(rankings_url(job), KIND, metadata, names))


class Ranker:
    """Holds the teacher's final scores at one revision, and ranks ranges of users.

    Args:
        job: The job that says what to rank.
        dataset: The run's dataset.

    Raises:
        InputError: a user has seen every item.
    """

    def __init__(self, job: RankingJob, dataset: Dataset) -> None:
        self.job, self.train = job, dataset.rows("train")
        check_unseen(self.train)
        self.scores = final_scores(job.teacher_url, job.revision, lambda: self.train, job.cache_dir)
        self.items = self.scores.rows[ITEMS].whole()

    def rank(self, number: int) -> Tensor:
        """Ranks a range: int32 [users of the range, depth], best first; less deep where the busiest user has fewer unseen items."""
        size = range_size(self.train.num_rows)
        users = torch.arange(number * size, min((number + 1) * size, self.train.num_rows))
        return torch.cat([self._best(ids) for ids in users.split(USERS_A_RANGE)])

    def _best(self, users: Tensor) -> Tensor:
        seen, own = self.train.select(users), [part.select(users) for part in self.scores.histories]
        return top_unseen(self.scores.rows[USERS][users], self.items, seen, self.train, self.job.depth, own).int()

    def write(self, number: int) -> None:
        """Ranks a range and writes its file, then its facts."""
        from safetensors.torch import save

        items, url = self.rank(number), rankings_url(self.job)
        data = save({"items": items.contiguous()})
        write_bytes(join(url, _name(number)), data)
        parts.note(url, _name(number), {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest(), "columns": items.shape[1]})


def rank_here(job: RankingJob, dataset: Dataset) -> None:
    """Makes the rankings in this process; goes on after the ranges that an interrupted call has finished."""
    left = ranges_left(job, dataset)
    ranker = Ranker(job, dataset) if left else None
    for number in left:
        assert ranker is not None
        ranker.write(number)
    publish_rankings(job, dataset)


@dataclass(frozen=True)
class RankedItems:
    """Reads the rankings of users, memory-mapped.

    Attributes:
        ranges: The ranges' items in order, int32 [users of the range, columns].
        users_a_range: Users of every range but the last.
        depth: Columns that are read.
    """

    ranges: Sequence[Tensor]
    users_a_range: int
    depth: int

    @property
    def width(self) -> int:
        """Returns the number of columns that are read: fewer than `depth` where the busiest user has fewer unseen items."""
        return min(self.depth, self.ranges[0].shape[1])

    def __getitem__(self, users: Tensor) -> Tensor:
        """Returns the rankings of users, int64 [n]: int64 [n, width]."""
        return self.at(users, torch.arange(self.width).expand(users.numel(), -1))

    def at(self, users: Tensor, places: Tensor) -> Tensor:
        """Returns the items at some places of users' rankings, int64 [n, t], from users, int64 [n], and places, int64 [n, t]."""
        out = torch.empty(places.shape, dtype=torch.int64)
        for number, here, rows in in_ranges(users, self.users_a_range):
            out[here] = self.ranges[number][rows[:, None], places[here]].long()
        return out


def open_rankings(job: RankingJob, dataset: Dataset) -> RankedItems:
    """Verifies and opens the rankings of a revision.

    Raises:
        InputError: they are missing, less deep than the job asks for, of another teacher or dataset, or damaged.
    """
    from safetensors.torch import load_file

    url = rankings_url(job)
    if not has_rankings(job, dataset):
        raise InputError(f"{url}: no rankings of this teacher's {job.depth} best items here; make them with run.redo=label")
    try:
        folder, manifest = open_artifact(url, KIND, job.cache_dir)
    except InputError as error:
        raise InputError(f"{error}, with run.redo=label") from error
    ranges = [load_file(str(folder / name))["items"] for name in sorted(manifest["files"])]
    return RankedItems(ranges, manifest["users_a_range"], job.depth)


def _name(number: int) -> str:
    return f"users-{number:05d}.safetensors"
