"""Writes and loads the serving bundle: a student's vectors, and all that top-k for raw ids needs, without Ray, DGL or DeepSpeed."""

import copy
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from .artifact import open_artifact, write_artifact
from .errors import InputError
from .graph import Csr
from .item_parts import rank_parts
from .new_items.item_map import ENTRY, ItemMap, read_item_map

if TYPE_CHECKING:
    import pyarrow as pa

USERS_A_BATCH, PLACES_A_BATCH = 1 << 13, 1 << 21  # at most, of lists that are made at a time


@dataclass(frozen=True)
class Recommendation:
    """Holds one user's list.

    Attributes:
        user: Raw user id; None for a list from a history.
        items: Raw item ids, best first; there are fewer than k where fewer items are allowed.
        scores: The items' scores.
    """

    user: str | None
    items: list[str]
    scores: list[float]


def write_bundle(
    url: str,
    users: Tensor,
    items: Tensor,
    user_ids: Sequence[str],
    item_ids: Sequence[str],
    train: Csr,
    weights: dict[str, Tensor],
    metadata: dict,
    item_map: ItemMap | None = None,
) -> None:
    """Writes the serving bundle, the artifact student/.

    Args:
        url: Where the bundle goes.
        users, items: Final vectors, float32 [num_users, d] and [num_items, d].
        user_ids, item_ids: Raw ids by dataset index.
        train: Train items of every user, for `exclude_seen`.
        weights: The student's weights, for training on from here.
        metadata: Metrics, settings and lineage for the manifest.
        item_map: The map from features to item vectors; None where there is none.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq
    from safetensors.torch import save_file

    facts = {"num_users": users.shape[0], "num_items": items.shape[0], "dim": users.shape[1], **metadata}
    if item_map is not None:
        facts[ENTRY] = item_map.manifest()
    with write_artifact(url, "student", facts) as folder:
        save_file({"user": users.contiguous().clone(), "item": items.contiguous().clone()}, str(folder / "vectors.safetensors"))
        save_file({k: t.contiguous().clone() for k, t in weights.items()}, str(folder / "weights.safetensors"))
        save_file({"pointers": train.pointers, "columns": train.columns.to(torch.int32)}, str(folder / "seen.safetensors"))
        for name, ids in (("users", user_ids), ("items", item_ids)):
            pq.write_table(pa.table({"id": pa.array(list(ids), pa.string())}), str(folder / f"{name}.parquet"))
        if item_map is not None:
            item_map.write(folder)


class Recommender:
    """Answers top-k queries from a loaded student.

    Attributes:
        manifest: The bundle's manifest: metrics, settings and lineage.
        users, items: Final vectors, float32 [num_users, d] and [num_items, d]; new items come after those of the bundle.
        user_ids, item_ids: Raw ids by index.
        item_map: The map from features to item vectors, which `with_new_items` reads; None where the bundle has none.
    """

    def __init__(self, folder: Path, manifest: dict) -> None:
        import pyarrow.parquet as pq
        from safetensors.torch import load_file

        self.manifest = manifest
        vectors, seen = load_file(str(folder / "vectors.safetensors")), load_file(str(folder / "seen.safetensors"))
        self.users, self.items = vectors["user"], vectors["item"]
        self.user_ids: list[str] = pq.read_table(folder / "users.parquet")["id"].to_pylist()
        self.item_ids: list[str] = pq.read_table(folder / "items.parquet")["id"].to_pylist()
        self._seen = Csr(seen["pointers"], seen["columns"], len(self.item_ids))  # memory-mapped, as the vectors are
        self._user_index = {raw: index for index, raw in enumerate(self.user_ids)}
        self._item_index = {raw: index for index, raw in enumerate(self.item_ids)}
        self._ends: tuple[int, ...] = (
            len(self.item_ids),
        )  # of the items' parts: those of the bundle, and those of each call of `with_new_items`
        self.item_map = read_item_map(folder, manifest)

    def __repr__(self) -> str:
        return f"Recommender({len(self.user_ids)} users, {len(self.item_ids)} items, dim={self.users.shape[1]})"

    def num_seen(self) -> Tensor:
        """Returns the number of train items of every user, int64 [num_users]."""
        return self._seen.degrees

    def with_new_items(self, item_ids: Sequence[Any], features: Mapping[str, Any]) -> "Recommender":
        """Returns a recommender that knows further items too, by their features; nothing is trained, and this one stays as it is.

        All methods of the new recommender rank the new items beside the others. The scores of the others are the same to the last bit.

        Args:
            item_ids: Raw ids of n new items, compared as strings.
            features: Raw features as those that the student was made with: by modality an array-like [n, d_m] of numbers, row i of
                `item_ids[i]`. A modality that is left out, or a row of NaN, means that an item lacks the modality.

        Raises:
            InputError: the bundle has no map of new items, an id is known already or occurs twice, features do not fit the map, or an item
                has none; the message names the id and the modality.
        """
        if self.item_map is None:
            raise InputError(
                "with_new_items: this bundle has no map of new items: the catalog had no features or too few items to fit one, or an "
                "earlier version exported it; prepare a catalog with features, and export again with run.redo=export"
            )
        ids = [str(raw) for raw in item_ids]
        if not ids:
            raise InputError("with_new_items needs at least one item id")
        _check_new(ids, self._item_index)
        new = copy.copy(self)
        new.items = torch.cat([self.items, self.item_map.of_given(features, ids)])
        new.item_ids = [*self.item_ids, *ids]
        new._item_index = {**self._item_index, **{raw: len(self.item_ids) + at for at, raw in enumerate(ids)}}
        new._seen = Csr(self._seen.pointers, self._seen.columns, len(new.item_ids))
        new._ends = (*self._ends, len(new.item_ids))
        return new

    def recommend(
        self, user_ids: Sequence[Any], k: int = 20, exclude_seen: bool = True, items: Sequence[Any] | None = None
    ) -> list[Recommendation]:
        """Returns the k best items for each user, by dot product; of equal scores the lower item index comes first.

        Args:
            user_ids: Raw user ids, compared as strings.
            k: List length.
            exclude_seen: Whether the user's train items are left out.
            items: Raw ids of the only items that may be recommended; all items by default.

        Raises:
            InputError: the student does not know some ids (the message lists them), or k is larger than the number of allowed items.
        """
        rows = _indices(user_ids, self._user_index, "user")
        exclude = self._seen.select(rows) if exclude_seen else None
        return self._lists([str(u) for u in user_ids], *self._rank(self.users[rows], k, exclude, self._allowed(k, items)))

    def recommend_in_batches(
        self, user_ids: Sequence[Any] | None = None, k: int = 20, exclude_seen: bool = True, items: Sequence[Any] | None = None
    ) -> "Iterator[pa.RecordBatch]":
        """Returns an iterator over the lists of many users as Arrow record batches, each of 8,192 users, or fewer with long lists.

        Args:
            user_ids: Raw user ids, compared as strings; all users by default.
            k, exclude_seen, items: As for `recommend`.

        Yields:
            Batches with the columns `user` string, `items` list of string, and `scores` list of double, in the order of the users.

        Raises:
            InputError: as `recommend`, before the first batch.
        """
        rows = torch.arange(len(self.user_ids)) if user_ids is None else _indices(user_ids, self._user_index, "user")
        return self._batches(rows, k, exclude_seen, self._allowed(k, items))

    def _batches(self, rows: Tensor, k: int, exclude_seen: bool, allowed: Tensor | None) -> "Iterator[pa.RecordBatch]":
        import pyarrow as pa

        user_ids, item_ids = pa.array(self.user_ids, pa.string()), pa.array(self.item_ids, pa.string())
        for own in rows.split(max(1, min(USERS_A_BATCH, PLACES_A_BATCH // k))):
            scores, ranked = self._rank(self.users[own], k, self._seen.select(own) if exclude_seen else None, allowed)
            kept = scores != -torch.inf
            ends = torch.cat([torch.zeros(1, dtype=torch.int64), kept.sum(1).cumsum(0)]).int().numpy()
            columns = (item_ids.take(pa.array(ranked[kept].numpy())), pa.array(scores[kept].double().numpy()))
            lists = [pa.ListArray.from_arrays(ends, column) for column in columns]
            yield pa.RecordBatch.from_arrays([user_ids.take(pa.array(own.numpy())), *lists], ["user", "items", "scores"])

    def recommend_from_history(
        self, item_ids: Sequence[Any], k: int = 20, exclude_seen: bool = True, items: Sequence[Any] | None = None
    ) -> Recommendation:
        """Returns the k best items for a user who was not in train, from the items of their history.

        The user's vector is the sum of the history's item vectors divided by the square root of the number of distinct items in it.

        Args:
            item_ids: Raw ids of the history's items, compared as strings.
            k: List length.
            exclude_seen: Whether the history's items are left out.
            items: Raw ids of the only items that may be recommended; all items by default.

        Raises:
            InputError: the history is empty, the student does not know some ids (the message lists them), or k is larger than the number
                of allowed items.
        """
        if not len(item_ids):
            raise InputError("recommend_from_history needs at least one item id")
        history = torch.unique(_indices(item_ids, self._item_index, "item"))
        user = self.items[history].sum(0, keepdim=True) / history.numel() ** 0.5
        seen = Csr(torch.tensor([0, history.numel()]), history, len(self.item_ids)) if exclude_seen else None
        recommendation = self._lists([""], *self._rank(user, k, seen, self._allowed(k, items)))[0]
        return Recommendation(None, recommendation.items, recommendation.scores)

    def _allowed(self, k: int, items: Sequence[Any] | None) -> Tensor | None:
        """Returns the indices of the only items that may be recommended; None where all may. Raises InputError where k is not possible."""
        if k < 1:
            raise InputError(f"k={k}: ask for at least one item")
        allowed = None if items is None else torch.unique(_indices(items, self._item_index, "item"))
        if allowed is not None and k > allowed.numel():
            raise InputError(f"k={k} is larger than the {allowed.numel()} items named; ask for fewer or name more")
        if allowed is None and k > len(self.item_ids):
            raise InputError(f"k={k} is larger than the catalog of {len(self.item_ids)} items; ask for at most {len(self.item_ids)}")
        return allowed

    def _rank(self, users: Tensor, k: int, exclude: Csr | None, allowed: Tensor | None) -> tuple[Tensor, Tensor]:
        return rank_parts(users, self.items, self._ends, k, exclude, allowed)

    def _lists(self, names: list[str], scores: Tensor, ranked: Tensor) -> list[Recommendation]:
        lists: list[Recommendation] = []
        for name, s, i in zip(names, scores.tolist(), ranked.tolist()):
            kept = [(self.item_ids[item], score) for item, score in zip(i, s) if score != -float("inf")]
            lists.append(Recommendation(name, [item for item, _ in kept], [score for _, score in kept]))
        return lists


def _check_new(ids: list[str], known: Mapping[str, int]) -> None:
    """Raises InputError where an id is known already or occurs twice."""
    for what, wrong in (
        ("the student knows them already", sorted({raw for raw in ids if raw in known})),
        ("each new item needs an id of its own, and they occur twice", sorted({raw for raw, n in Counter(ids).items() if n > 1})),
    ):
        if wrong:
            raise InputError(f"item ids {_shown(wrong)}: {what}")


def _shown(ids: list[str]) -> str:
    """Lists the first 20 ids and says how many more there are."""
    return ", ".join(ids[:20]) + (f" and {len(ids) - 20} more" if len(ids) > 20 else "")


def _indices(raw_ids: Sequence[Any], index: dict[str, int], kind: str) -> Tensor:
    if isinstance(raw_ids, str):
        raise InputError(f"{kind} ids {raw_ids!r}: expected a list of ids and got a single one; give [{raw_ids!r}]")
    unknown = [str(raw) for raw in raw_ids if str(raw) not in index]
    if unknown:
        raise InputError(f"unknown {kind} ids: {_shown(unknown)}; the student knows the {len(index)} {kind}s it was trained with")
    return torch.tensor([index[str(raw)] for raw in raw_ids], dtype=torch.int64)


def load_student(url: str, cache_dir: str | None = None) -> Recommender:
    """Loads a serving bundle from any fsspec URL, after checking every file's checksum.

    Args:
        url: The bundle, `<run.dir>/student`.
        cache_dir: Folder for a local copy where the URL is remote.

    Raises:
        InputError: there is no complete bundle, or one of its files is damaged.
    """
    return Recommender(*open_artifact(url, "student", cache_dir))
