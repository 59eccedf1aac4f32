"""Ranks the teacher's best unseen items of every user at a revision: once, by ranges of users, for all labelers, students and epochs.

`teacher/rev-<r>/rankings/` holds two files for each range of users: `items-<n>.safetensors` with the tensor `items` int32 [users of the
range, depth], best first, and `scores-<n>.safetensors` with the items' scores, the final ones and those by modality (docs/formats.md).
Students read the items alone. Ranking that was interrupted goes on after the ranges that are complete (`parts.py`).
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from ...core.artifact import SCHEMA_VERSION, has_artifact, manifest_digest, open_artifact, read_manifest
from ...core.errors import InputError
from ...core.item_shards import USERS_A_PASS, best_of_shards, rows_a_shard
from ...core.ranking import unseen_depth
from ...core.sampling import check_unseen
from ...core.sides import USERS
from ...core.storage import JsonObject, join, read_json
from ...graph_store.dataset import Dataset
from ..artifacts.teacher import revision_digest, revision_url
from ..messages import RankingJob
from . import parts
from .teacher_scores import scores_of

USERS_AT_A_TIME = 1 << 12
SCORES_MIB, DEVICE_SCORES_MIB = 1 << 8, 1 << 11  # bounds on a block of scores in a host's memory and in a GPU's
USERS_A_RANGE, MOST_RANGES = 1 << 14, 1 << 6  # a batch of examples reads from every range, so there are not many
KIND = "rankings"
LAYOUT = "items, and scores in files of their own, 3"  # earlier versions named none, or kept both in one file


def range_size(num_users: int) -> int:
    """Returns the number of users in a range of a catalog: 16,384, or as many as make 64 ranges."""
    return max(USERS_A_RANGE, -(-num_users // MOST_RANGES))


def num_ranges(num_users: int) -> int:
    """Returns the number of ranges of a catalog's users."""
    return -(-num_users // range_size(num_users))


def users_of_range(number: int, num_users: int) -> Tensor:
    """Returns the users of a range, int64 [n], ascending."""
    size = range_size(num_users)
    return torch.arange(number * size, min((number + 1) * size, num_users))


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
    return {"layout": LAYOUT, "teacher": revision_digest(job.teacher_url, job.revision), "dataset": dataset.digest}


def has_rankings(job: RankingJob, dataset: Dataset) -> bool:
    """Whether complete rankings of the revision are there, as deep as the job asks for or deeper."""
    url = rankings_url(job)
    if not has_artifact(url):
        return False
    manifest = read_json(join(url, "manifest.json"))
    if (manifest.get("kind"), manifest.get("schema_version")) != (KIND, SCHEMA_VERSION):
        return False  # of another version: made again
    return manifest["depth"] >= job.depth and manifest["made_with"] == made_with(job, dataset)


def rankings_digest(job: RankingJob) -> str:
    """Returns the checksum of a revision's rankings: labels that hold places in these name it."""
    return manifest_digest(read_manifest(rankings_url(job), KIND))


def ranges_left(job: RankingJob, dataset: Dataset) -> list[int]:
    """Lists the ranges that are still to be ranked: all of them, but for those that an interrupted call has finished.

    Removes rankings that are complete, or that were begun with another teacher, dataset or depth.
    """
    url, wanted = rankings_url(job), {**made_with(job, dataset), "depth": job.depth, "users_a_range": range_size(dataset.num_users)}
    parts.begin(url, wanted)
    return [number for number in range(num_ranges(dataset.num_users)) if not all(parts.is_made(url, name) for name in _names(number))]


def publish_rankings(job: RankingJob, dataset: Dataset) -> int:
    """Completes the rankings by their manifest, when all ranges are ranked; returns their bytes."""
    names = [name for number in range(num_ranges(dataset.num_users)) for name in _names(number)]
    facts = parts.facts_of(rankings_url(job), names[0]) if names else {"columns": 0, "scorers": []}
    metadata = {
        "depth": job.depth,
        "columns": facts["columns"],
        "scorers": facts["scorers"],
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
        self.scores = scores_of(job, self.train)
        self.columns = unseen_depth(self.train, job.depth)
        is_mapped = self.scores.device.type == "cpu" and not self.scores.final.histories  # which need whole rows of scores
        items = self.scores.items
        self.shard = rows_a_shard(len(items), items.shape[1] * items.element_size()) if is_mapped else None

    def _best(self, users: Tensor) -> Tensor:
        """Ranks some users: int64 [n, columns], best first."""
        final, device = self.scores.final, self.scores.device
        here, seen = users.to(device), self.train.select(users).to(device)
        own = [part.select(here) for part in final.histories]
        memory_mib = SCORES_MIB if device.type == "cpu" else DEVICE_SCORES_MIB
        return best_of_shards(final.rows[USERS][here], self.scores.items, self.columns, seen, memory_mib, own, self.shard).to(users.device)

    def write(self, number: int) -> None:
        """Ranks a range and writes its files, then their facts."""
        users = users_of_range(number, self.train.num_rows)
        shape, names, url = (users.numel(), self.columns), self.scores.names, rankings_url(self.job)
        items_name, scores_name = _names(number)
        facts = {"columns": self.columns, "scorers": names}
        at_a_time = USERS_AT_A_TIME if self.shard is None else USERS_A_PASS  # many, since every pass reads all shards

        def rows_of(ids: Tensor) -> slice:
            return slice(int(ids[0] - users[0]), int(ids[-1] - users[0]) + 1)

        with (
            parts.tensors(url, items_name, {"items": ("int32", shape)}, facts) as items,
            parts.tensors(url, scores_name, {name: ("float32", shape) for name in names}, {}) as scores,
        ):
            for ids in users.split(at_a_time):
                items["items"][rows_of(ids)] = self._best(ids).numpy()
            for ids in users.split(USERS_AT_A_TIME):
                rows = rows_of(ids)
                ranked = torch.from_numpy(items["items"][rows].astype(np.int64))
                for name, of_scorer in zip(names, self.scores.scores(ids, ranked)):
                    scores[name][rows] = of_scorer.numpy()


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
        scores: The items' scores of each range by scorer, float32 [users of the range, columns]; the final ones, then those by modality. No
            range has any where they were opened for their items alone.
        users_a_range: Users of every range but the last.
        depth: Columns that are read.
    """

    ranges: Sequence[Tensor]
    scores: Sequence[Sequence[Tensor]]
    users_a_range: int
    depth: int

    @property
    def width(self) -> int:
        """Returns the number of columns that are read: fewer than `depth` where the busiest user has fewer unseen items."""
        return min(self.depth, self.ranges[0].shape[1])

    def __getitem__(self, users: Tensor) -> Tensor:
        """Returns the rankings of users, int64 [n]: int64 [n, width]."""
        return self.at(users, self._all_places(users))

    def at(self, users: Tensor, places: Tensor) -> Tensor:
        """Returns the items at some places of users' rankings, int64 [n, t], from users, int64 [n], and places, integers [n, t]."""
        # By NumPy, which takes two thirds of torch's time for this, on the one thread that reads labels.
        out, of_users = np.empty(tuple(places.shape), np.int64), places.numpy()
        for number, here, rows in in_ranges(users, self.users_a_range):
            of_range, at = self.ranges[number].numpy(), here.numpy()
            out[at] = of_range.reshape(-1).take(of_users[at] + (rows.numpy() * of_range.shape[1])[:, None])
        return torch.from_numpy(out)

    def scores_of(self, users: Tensor) -> list[Tensor]:
        """Returns the scores of users' rankings, float32 [n, width] by scorer."""
        return self.scores_at(users, self._all_places(users))

    def scores_at(self, users: Tensor, places: Tensor) -> list[Tensor]:
        """Returns scores at some places of users' rankings, float32 [n, t] by scorer; the arguments are those of `at`."""
        out = [torch.empty(places.shape) for _ in self.scores[0]]
        for number, here, rows in in_ranges(users, self.users_a_range):
            of_range, places_here = self.scores[number], rows[:, None] * self.ranges[number].shape[1] + places[here]
            for values, scores in zip(out, of_range):
                values.index_copy_(0, here, scores.view(-1).take(places_here))
        return out

    def _all_places(self, users: Tensor) -> Tensor:
        return torch.arange(self.width).expand(users.numel(), -1)


def open_rankings(job: RankingJob, dataset: Dataset, has_scores: bool = False) -> RankedItems:
    """Verifies and opens the rankings of a revision.

    Args:
        job: The job that says what was ranked.
        dataset: The run's dataset.
        has_scores: Whether the items' scores are opened, too; else they are neither fetched nor verified.

    Raises:
        InputError: they are missing, less deep than the job asks for, of another teacher or dataset, or damaged.
    """
    from safetensors.torch import load_file

    url = rankings_url(job)
    if not has_rankings(job, dataset):
        raise InputError(f"{url}: no rankings of this teacher's {job.depth} best items here; make them with run.redo=label")
    try:
        folder, manifest = open_artifact(url, KIND, job.cache_dir, lambda name: has_scores or name.startswith("items-"))
    except InputError as error:
        raise InputError(f"{error}, with run.redo=label") from error
    files = [_names(number) for number in range(len(manifest["files"]) // 2)]
    ranges = [load_file(str(folder / items))["items"] for items, _ in files]
    of_scores = [load_file(str(folder / scores)) for _, scores in files] if has_scores else []
    by_scorer = [[tensors[name] for name in manifest["scorers"]] for tensors in of_scores]
    return RankedItems(ranges, by_scorer, manifest["users_a_range"], job.depth)


def _names(number: int) -> tuple[str, str]:
    """Returns the names of a range's files: of its items and of their scores."""
    return f"items-{number:05d}.safetensors", f"scores-{number:05d}.safetensors"
