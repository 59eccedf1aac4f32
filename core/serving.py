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
from .item_parts import ItemPart, gather, rank_parts
from .new_items.item_map import ENTRY, ItemMap, read_item_map
from .raw_ids import Ids, RawIds, id_pieces, write_ids
from .tensor_file import check_finite, copy_rows, save_tensors, tensor_file

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


Replaced = tuple[Tensor, Tensor]  # indices, int64 [n], and the vectors that take the place of theirs, float32 [n, d]


def write_bundle(
    url: str,
    users: Tensor,
    items: Tensor,
    user_ids: Ids,
    item_ids: Ids,
    train: Csr,
    weights: dict[str, Tensor],
    metadata: dict,
    item_map: ItemMap | None = None,
    replaced: Replaced | None = None,
) -> None:
    """Writes the serving bundle, the artifact student/, a piece at a time: tensors that are memory-mapped are never whole in memory.

    Args:
        url: Where the bundle goes.
        users, items: Final vectors, float32 [num_users, d] and [num_items, d].
        user_ids, item_ids: Raw ids by dataset index.
        train: Train items of every user, for `exclude_seen`.
        weights: The student's weights, for training on from here.
        metadata: Metrics, settings and lineage for the manifest.
        item_map: The map from features to item vectors; None where there is none.
        replaced: Items that have other vectors than those in `items`.

    Raises:
        InputError: a vector has a value that is infinite or NaN.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    facts = {"num_users": users.shape[0], "num_items": items.shape[0], "dim": users.shape[1], **metadata}
    if item_map is not None:
        facts[ENTRY] = item_map.manifest()
    with write_artifact(url, "student", facts) as folder:
        sides = {"user": users, "item": items}
        for name, rows in (sides if replaced is None else {**sides, "replaced item": replaced[1]}).items():
            check_finite(rows, f"the student's {name} vectors")
        with tensor_file(folder / "vectors.safetensors", {name: ("float32", tuple(rows.shape)) for name, rows in sides.items()}) as out:
            for name, rows in sides.items():
                copy_rows(rows, out[name])
            if replaced is not None:
                out["item"][replaced[0].numpy()] = replaced[1].numpy()
        save_tensors(folder / "weights.safetensors", weights)
        sizes = {"pointers": ("int64", (train.num_rows + 1,)), "columns": ("int32", (train.columns.numel(),))}
        with tensor_file(folder / "seen.safetensors", sizes) as out:
            copy_rows(train.pointers, out["pointers"])
            copy_rows(train.columns, out["columns"])
        for name, ids in (("users", user_ids), ("items", item_ids)):
            write_ids(folder / f"{name}.safetensors", ids)
            with pq.ParquetWriter(folder / f"{name}.parquet", pa.schema([("id", pa.string())])) as writer:
                for piece in id_pieces(ids):
                    writer.write_table(pa.table({"id": piece.cast(pa.string())}))
        if item_map is not None:
            item_map.write(folder)


class Recommender:
    """Answers top-k queries from a loaded student.

    Attributes:
        manifest: The bundle's manifest: metrics, settings and lineage.
        users: Final vectors, float32 [num_users, d], memory-mapped.
        user_ids, item_ids: Raw ids by index: sequences of strings that lie in memory-mapped files.
        item_map: The map from features to item vectors, which `with_new_items` reads; None where the bundle has none.
    """

    def __init__(self, folder: Path, manifest: dict) -> None:
        from safetensors.torch import load_file

        self.manifest = manifest
        vectors, seen = load_file(str(folder / "vectors.safetensors")), load_file(str(folder / "seen.safetensors"))
        self.users, self._item_parts = (
            vectors["user"],
            [ItemPart(vectors["item"])],
        )  # those of the bundle, and those of each `with_new_items`
        self.user_ids, self.item_ids = (_read_ids(folder, name) for name in ("users", "items"))
        self._seen = Csr(seen["pointers"], seen["columns"], len(self.item_ids))  # memory-mapped, as the vectors are
        self.item_map = read_item_map(folder, manifest)

    def __repr__(self) -> str:
        return f"Recommender({len(self.user_ids)} users, {len(self.item_ids)} items, dim={self.users.shape[1]})"

    @property
    def items(self) -> Tensor:
        """Returns the items' final vectors, float32 [num_items, d], memory-mapped; with new items after them it is a copy."""
        parts = [part.vectors for part in self._item_parts]
        return parts[0] if len(parts) == 1 else torch.cat(parts)

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
        _check_new(ids, self.item_ids)
        new = copy.copy(self)
        new._item_parts = [*self._item_parts, ItemPart(self.item_map.of_given(features, ids))]
        new.item_ids = self.item_ids.followed_by(ids)
        new._seen = Csr(self._seen.pointers, self._seen.columns, len(new.item_ids))
        return new

    def first_user(self) -> str:
        """Returns the raw id of the first user with train items, or of the first user."""
        first = int(torch.searchsorted(self._seen.pointers, 1)) - 1  # a pointer counts the items of all users before
        return self.user_ids[first if first < len(self.user_ids) else 0]

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
        rows, allowed = self.rows_of(user_ids), self.allowed(k, items)
        ids, lists = self.item_ids, list[Recommendation]()
        for own, scores, ranked in self._ranked(rows, k, exclude_seen, allowed):
            lists += _lists(self.user_ids.take(own.numpy()).to_pylist(), ids, scores, ranked)
        return lists

    def rows_of(self, user_ids: "Sequence[Any] | pa.Array") -> Tensor:
        """Returns the indices of users, int64 [n].

        Args:
            user_ids: Raw ids, compared as strings, or an Arrow array of strings.

        Raises:
            InputError: the student does not know some ids; the message lists them.
        """
        return _indices(user_ids, self.user_ids, "user")

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
        rows = range(len(self.user_ids)) if user_ids is None else self.rows_of(user_ids)
        return self.batches(rows, k, exclude_seen, items)

    def batches(
        self, rows: Tensor | range, k: int = 20, exclude_seen: bool = True, items: Sequence[Any] | None = None
    ) -> "Iterator[pa.RecordBatch]":
        """As `recommend_in_batches`, of users by index: int64 [n], or a range."""
        return self._batches(rows, k, exclude_seen, self.allowed(k, items))

    def _batches(self, rows: Tensor | range, k: int, exclude_seen: bool, allowed: Tensor | None) -> "Iterator[pa.RecordBatch]":
        import pyarrow as pa

        for own, scores, ranked in self._ranked(rows, k, exclude_seen, allowed):
            kept = scores != -torch.inf
            ends = torch.cat([torch.zeros(1, dtype=torch.int64), kept.sum(1).cumsum(0)]).int().numpy()
            columns = self.item_ids.take(ranked[kept].numpy()).cast(pa.string()), pa.array(scores[kept].double().numpy())
            lists = [pa.ListArray.from_arrays(ends, column) for column in columns]
            users = self.user_ids.take(own.numpy()).cast(pa.string())
            yield pa.RecordBatch.from_arrays([users, *lists], ["user", "items", "scores"])

    def _ranked(self, rows: Tensor | range, k: int, exclude_seen: bool, allowed: Tensor | None) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        """Yields batches of users by index, int64 [n], with their scores [n, k] and items, int64; some scores may be -inf."""
        size = users_a_batch(k)
        for first in range(0, len(rows), size):
            some = rows[first : first + size]
            own = torch.arange(some.start, some.stop) if isinstance(some, range) else some
            exclude = self._seen.select(own) if exclude_seen else None
            yield own, *rank_parts(self.users[own], self._item_parts, k, exclude, allowed)

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
        history = torch.unique(_indices(item_ids, self.item_ids, "item"))
        user = gather(self._item_parts, history).sum(0, keepdim=True) / history.numel() ** 0.5
        seen = Csr(torch.tensor([0, history.numel()]), history, len(self.item_ids)) if exclude_seen else None
        found = rank_parts(user, self._item_parts, k, seen, self.allowed(k, items))
        return _lists([None], self.item_ids, *found)[0]

    def allowed(self, k: int, items: Sequence[Any] | None = None) -> Tensor | None:
        """Returns the indices of the only items that may be recommended; None where all may. Raises InputError where k is not possible."""
        if k < 1:
            raise InputError(f"k={k}: ask for at least one item")
        allowed = None if items is None else torch.unique(_indices(items, self.item_ids, "item"))
        if allowed is not None and k > allowed.numel():
            raise InputError(f"k={k} is larger than the {allowed.numel()} items named; ask for fewer or name more")
        if allowed is None and k > len(self.item_ids):
            raise InputError(f"k={k} is larger than the catalog of {len(self.item_ids)} items; ask for at most {len(self.item_ids)}")
        return allowed


def users_a_batch(k: int) -> int:
    """Returns the number of users of a batch of lists of k items."""
    return max(1, min(USERS_A_BATCH, PLACES_A_BATCH // k))


def _lists(users: Sequence[str | None], item_ids: RawIds, scores: Tensor, ranked: Tensor) -> list[Recommendation]:
    """Makes users' lists of scores [n, k] and items, int64 [n, k], without those of score -inf."""
    kept = scores != -torch.inf
    ids, values, ends = item_ids.take(ranked[kept].numpy()).to_pylist(), scores[kept].tolist(), kept.sum(1).cumsum(0).tolist()
    return [Recommendation(user, ids[begin:end], values[begin:end]) for user, begin, end in zip(users, [0, *ends], ends)]


def _read_ids(folder: Path, name: str) -> RawIds:
    """Opens the ids of users or items; a bundle of an earlier version has them in a Parquet file alone, which is read into memory."""
    import pyarrow.parquet as pq

    path = folder / f"{name}.safetensors"
    return RawIds.open(path) if path.is_file() else RawIds.of(lambda: pq.read_table(folder / f"{name}.parquet")["id"].chunks)


def _check_new(ids: list[str], known: RawIds) -> None:
    """Raises InputError where an id is known already or occurs twice."""
    for what, wrong in (
        ("the student knows them already", sorted({raw for raw, at in zip(ids, known.find(ids).tolist()) if at >= 0})),
        ("each new item needs an id of its own, and they occur twice", sorted({raw for raw, n in Counter(ids).items() if n > 1})),
    ):
        if wrong:
            raise InputError(f"item ids {_shown(wrong)}: {what}")


def _shown(ids: list[str]) -> str:
    """Lists the first 20 ids and says how many more there are."""
    return ", ".join(ids[:20]) + (f" and {len(ids) - 20} more" if len(ids) > 20 else "")


def _indices(raw_ids: "Sequence[Any] | pa.Array", known: RawIds, kind: str) -> Tensor:
    import pyarrow as pa

    if isinstance(raw_ids, str):
        raise InputError(f"{kind} ids {raw_ids!r}: expected a list of ids and got a single one; give [{raw_ids!r}]")
    ids = raw_ids if isinstance(raw_ids, pa.Array) else [str(raw) for raw in raw_ids]
    indices = known.find(ids)
    unknown = [str(ids[row]) for row in (indices < 0).nonzero().flatten().tolist()]
    if unknown:
        raise InputError(f"unknown {kind} ids: {_shown(unknown)}; the student knows the {len(known)} {kind}s it was trained with")
    return indices


def load_student(url: str, cache_dir: str | None = None, verify: str = "changed") -> Recommender:
    """Loads a serving bundle from any fsspec URL, after checking its files: vectors, ids and train items stay in memory-mapped files.

    Args:
        url: The bundle, `<run.dir>/student`.
        cache_dir: Folder for a local copy where the URL is remote.
        verify: Which checksums are computed. "changed": of all files, but for those of 64 MiB and more that were verified in this place
            before and have not been changed since. "all": of all files, some seconds a GiB. "sizes": of files of less than 64 MiB; of
            larger ones the size alone is checked, as for a folder that is read-only and verified elsewhere.

    Raises:
        InputError: there is no complete bundle, one of its files is damaged, or a vector has values that are not finite, which are looked
            for where checksums are computed.
    """
    return Recommender(*open_artifact(url, "student", cache_dir, verify=verify, check=_check_content))


def _check_content(path: Path) -> None:
    """Raises InputError where a file of a bundle has vectors that are not finite."""
    from safetensors.torch import load_file

    if path.name == "vectors.safetensors":
        for side, rows in load_file(str(path)).items():
            check_finite(rows, f"{path}: {side} vectors")
