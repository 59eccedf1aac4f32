"""Encodes label blocks: the Arrow tables in which labels of single examples travel and are kept (docs/formats.md).

A block holds the examples of whole steps of one epoch, or of one worker's share of them, in the epoch's order. Candidates that come from
the teacher's rankings are kept as their places there. Revision, epoch and number stand in the table's metadata. Scores are differences
from the positive's score, which is left out: every loss depends on differences only, and float16 would cut digits from large absolute
values.
"""

from collections.abc import Callable, Iterator

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor

from ...core.errors import InputError
from ...core.objectives import Labels
from ..messages import LabelJob
from .encoding import EncodedScores, encode, index_dtype

# Users, int64 [n], and places in their rankings, of any integer type [n, t] -> items, int64 [n, t].
Ranked = Callable[[Tensor, Tensor], Tensor]


def labels_to_table(
    labels: Labels,
    modalities: list[str],
    numbers: dict[str, int],
    num_items: int,
    encoding: str,
    places: Tensor | None = None,
    depth: int = 0,
) -> pa.Table:
    """Returns a block as an Arrow table.

    Args:
        labels: The block's labels, with scores.
        modalities: Names of the modalities, in the order of `labels.modal_scores`.
        numbers: `revision`, `epoch` and `block`.
        num_items: Number of items in the catalog.
        encoding: Of the scores, "float16" or "uint8".
        places: int64 [n, t], the places of the last t candidates in their users' rankings; None where none come from there.
        depth: The number of places in a ranking.

    Raises:
        InputError: a relative score does not fit float16.
    """
    assert labels.scores is not None
    assert labels.modal_scores is not None
    num_ranked = 0 if places is None else places.shape[1]
    drawn = labels.candidates[:, 1 : labels.candidates.shape[1] - num_ranked]
    dtype = item_dtype(num_items)
    columns = {
        "user": pa.array(labels.users.numpy().astype(np.int32)),
        "positive": pa.array(labels.candidates[:, 0].numpy().astype(dtype)),
        "drawn": _lists(drawn.numpy().astype(dtype)),
    }
    if places is not None:
        columns["ranked"] = _lists(places.numpy().astype(index_dtype(depth)))
    of_modality = {f"scores.{m}": scores for m, scores in zip(modalities, labels.modal_scores)}
    for name, scores in {"scores": labels.scores, **of_modality}.items():
        what = f"label block {numbers['block']} of epoch {numbers['epoch']}: {name.replace('.', ' of ')}"
        encoded = encode(scores[:, 1:].float().numpy(), encoding, what)
        columns[name] = _lists(encoded.values)
        if encoded.ranges is not None:
            columns[range_of(name)] = _lists(encoded.ranges)
    return pa.table(columns).replace_schema_metadata({name: str(value) for name, value in numbers.items()})


def range_of(name: str) -> str:
    """Returns the name of the column with the ranges of a column of encoded scores."""
    return "range" + name.removeprefix("scores")


def _lists(x: np.ndarray) -> pa.FixedSizeListArray:
    """Returns an array [n, k] as n lists of k."""
    return pa.FixedSizeListArray.from_arrays(pa.array(np.ascontiguousarray(x).reshape(-1)), x.shape[1])


class LabelBlock:
    """Reads the labels of a block, some rows at a time; the arrays stay where the table has them.

    Args:
        table: The block's Arrow table.
        modalities: Names of the modalities, in the teacher's order.
        numbers: `revision`, `epoch` and `block` that the table should have.
        ranked: Returns items from their places in users' rankings; needed where the block has such places.

    Raises:
        InputError: the block has another revision, epoch or number.
    """

    def __init__(self, table: pa.Table, modalities: list[str], numbers: dict[str, int], ranked: Ranked | None = None) -> None:
        found = {name.decode(): value.decode() for name, value in (table.schema.metadata or {}).items()}
        for name, expected in numbers.items():
            if found.get(name) != str(expected):
                raise InputError(
                    f"label block {numbers['block']} of epoch {numbers['epoch']}: {name} {found.get(name)} found, {expected} expected; "
                    "run label again"
                )
        self._columns = {name: _array(table[name]) for name in table.schema.names}
        self._scores = ["scores", *(f"scores.{m}" for m in modalities)]
        self._ranked, self.num_rows = ranked, table.num_rows

    def __getitem__(self, rows: slice | np.ndarray) -> Labels:
        """Returns the labels of some rows, a slice or indices int64 [n]: users and candidates int64, scores float32."""
        of_rows = {name: values[rows] for name, values in self._columns.items()}
        users, drawn, width = torch.from_numpy(of_rows["user"].astype(np.int64)), of_rows["drawn"], 1 + of_rows["scores"].shape[1]
        # Filled in place, since copies would take as long as what is computed.
        candidates = np.empty((len(drawn), width), np.int64)
        candidates[:, 0], candidates[:, 1 : 1 + drawn.shape[1]] = of_rows["positive"], drawn
        if "ranked" in of_rows:
            assert self._ranked is not None, "a block with places in rankings is read with the rankings"
            candidates[:, 1 + drawn.shape[1] :] = self._ranked(users, torch.from_numpy(of_rows["ranked"].copy())).numpy()
        scores = np.zeros((len(self._scores), len(drawn), width), np.float32)  # the positive's own is 0
        for name, out in zip(self._scores, scores):
            EncodedScores(of_rows[name], of_rows.get(range_of(name))).decode(out[:, 1:])
        by_scorer = torch.from_numpy(scores)
        return Labels(users, torch.from_numpy(candidates), by_scorer[0], by_scorer[1:])


def by_step(labels: Labels, steps: range, job: LabelJob) -> Iterator[tuple[int, Labels]]:
    """Yields the number and the labels of each of some steps, whose labels follow one another in `labels`."""
    start = 0
    for step, size in zip(steps, job.sizes_of(steps)):
        yield step, labels.slice(slice(start, start + size))
        start += size


def item_dtype(num_items: int) -> type[np.integer]:
    """Returns the type that items of a catalog are kept in."""
    return np.uint16 if num_items <= 1 << 16 else np.int32


def _array(column: pa.ChunkedArray) -> np.ndarray:
    """Returns a column as an array [n] or [n, k], without a copy where it is one chunk."""
    array = column.combine_chunks()
    if isinstance(array, pa.ChunkedArray):
        array = array.chunk(0)
    if not pa.types.is_fixed_size_list(array.type):
        return array.to_numpy(zero_copy_only=True)
    return array.flatten().to_numpy(zero_copy_only=True).reshape(len(array), array.type.list_size)


def block_name(epoch: int, block: int) -> str:
    """Returns the name of a block's file below the labels' folder."""
    return f"epoch-{epoch:05d}/block-{block:05d}.arrow"
