"""Vectors of a teacher that was trained elsewhere: raw ids are looked up in a dataset, and rows are put in the dataset's order."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch
from torch import Tensor

from ...core.errors import InputError
from ...core.sides import SIDE_NAMES
from ...core.vector_files import SideFile
from ..catalog import feature_chunk_rows
from ..dataset import Dataset
from ..external import scratch
from .table_file import TableFile, id_column

IDS_AT_A_TIME = 1 << 20  # raw ids that are looked up at a time; each look-up hashes those of the dataset anew


@dataclass(frozen=True)
class PlacedRows:
    """Says where the rows of a file of vectors belong.

    Attributes:
        file: The file.
        index: int32 [rows of the file], the user or item of each row; -1 where the dataset does not know the id.
        without: How many users or items have no row; none of them has a train interaction.
        example_without: The first of their raw ids; None where there is none.
        example_unknown: The first raw id that the dataset does not know; None where it knows all.
    """

    file: SideFile
    index: np.ndarray
    without: int
    example_without: str | None
    example_unknown: str | None

    @property
    def unknown(self) -> int:
        """How many rows are of ids that the dataset does not know."""
        return int(np.count_nonzero(self.index < 0))

    def remarks(self) -> list[str]:
        """What is left out, and what is made up, a sentence without its end each."""
        side, said = SIDE_NAMES[self.file.side], []
        if self.unknown:
            said.append(f"{self.unknown:,} rows of {side}s that the dataset does not know are left out, such as {self.example_unknown!r}")
        if self.without:
            said.append(
                f"{self.without:,} {side}s have no vector and no train interaction, such as {self.example_without!r}: theirs are zero, and "
                "so are all their scores"
            )
        if self.file.unread:
            said.append(f"columns that are not read: {', '.join(self.file.unread)}")
        return [f"{self.file.url}: {each}" for each in said]


def place_rows(file: SideFile, dataset: Dataset) -> PlacedRows:
    """Looks up the raw ids of a file of vectors; in memory are the dataset's raw ids, a place for each row, and a piece of the file.

    Args:
        file: The file.
        dataset: The dataset whose users or items they are.

    Raises:
        InputError: an id is missing, is no integer or string, or occurs twice; the dataset knows none of them; or a user or item with
            train interactions has none.
    """
    known, places = dataset.ids(file.side), []
    table, side, first_id = TableFile(file.url, is_parquet=True), SIDE_NAMES[file.side], None
    seen, unknown = np.zeros(len(known), bool), None
    for first_row, piece in table.pieces([file.id_column], IDS_AT_A_TIME):
        ids = id_column(file.where, piece, file.id_column, file.where, first_row)
        first_id = ids[0].as_py() if first_id is None else first_id
        index = pc.fill_null(pc.index_in(ids, value_set=known), -1).to_numpy(zero_copy_only=False).astype(np.int32, copy=False)
        if unknown is None and (index < 0).any():
            unknown = ids[int(np.argmax(index < 0))].as_py()
        _check_once(file, index, seen, first_row, known)
        places.append(index)
    index = np.concatenate(places)
    if not seen.any():
        raise InputError(
            f"{file.where}: the dataset knows none of its {len(index):,} ids: the file has {first_id!r}, and the dataset "
            f"{known[0].as_py()!r}; write the raw ids of the {side}s as the source has them"
        )
    missing = np.flatnonzero(~seen)
    touched = dataset.degrees("train", file.side).numpy()[missing] > 0
    if touched.any():
        example = known[int(missing[np.argmax(touched)])].as_py()
        raise InputError(
            f"{file.where}: {int(touched.sum()):,} {side}s with train interactions have no vector, such as {example!r}; write a row for "
            "each, or prepare the catalog without them"
        )
    without = known[int(missing[0])].as_py() if len(missing) else None
    return PlacedRows(file, index, len(missing), without, unknown)


def _check_once(file: SideFile, index: np.ndarray, seen: np.ndarray, first_row: int, known: pa.Array) -> None:
    """Marks users or items of some rows as seen; raises InputError where one has been seen before."""
    rows = np.flatnonzero(index >= 0)
    found = index[rows]
    order = np.argsort(found, kind="stable")
    again = seen[found]
    again[order[1:]] |= found[order[1:]] == found[order[:-1]]
    if again.any():
        at = int(np.argmax(again))
        raise InputError(
            f"{file.where}, row {first_row + int(rows[at])}: {SIDE_NAMES[file.side]} {known[int(found[at])].as_py()!r} has a row already; "
            "keep one row of each"
        )
    seen[found] = True


@dataclass(frozen=True)
class ScratchRows:
    """Rows of users or items in a scratch file, whose pages count as cache; those that were not kept are not there.

    Attributes:
        rows: float32 [kept, dim].
        places: int64 [users or items], the row of each in `rows`; -1 where it was not kept.
    """

    rows: Tensor
    places: Tensor

    @property
    def dim(self) -> int:
        """The number of columns."""
        return self.rows.shape[1]

    def pull(self, ids: Tensor) -> Tensor:
        """The rows of dataset indices, int64 [n], which were kept: float32 [n, dim]."""
        return self.rows[self.places[ids]]


def read_rows(placed: PlacedRows, kept: Tensor) -> dict[str, ScratchRows]:
    """Reads the vectors of some users or items; a piece of the file is in memory at a time, and what is read in scratch files.

    Args:
        placed: Where the file's rows belong.
        kept: bool [users or items], those that are read; theirs is a zero vector where the file has none.

    Returns:
        Rows by name, `final` and `modal.<modality>`.

    Raises:
        InputError: a vector that is read is missing, of another length than the first row's, or holds a value that is not finite.
    """
    file, count = placed.file, int(kept.sum())
    places = torch.full(kept.shape, -1, dtype=torch.int64)
    places[kept] = torch.arange(count)
    tables = {name: ScratchRows(torch.from_numpy(scratch(np.float32, count, dim)), places) for name, dim in file.dims.items()}
    targets = np.where(placed.index >= 0, places.numpy()[placed.index], -1)
    for first_row, piece in _pieces(file):
        target = targets[first_row : first_row + piece.num_rows]
        wanted = target >= 0
        if wanted.any():
            numbers = first_row + np.flatnonzero(wanted)
            for name, column in file.columns.items():
                vectors = piece[column].filter(pa.array(wanted)).combine_chunks()
                tables[name].rows.numpy()[target[wanted]] = _checked(file, name, vectors, numbers)
    return tables


def _pieces(file: SideFile) -> Iterator[tuple[int, pa.Table]]:
    """The columns of vectors, in pieces of about the same bytes whatever their lengths, each with the number of its first row."""
    rows = feature_chunk_rows(sum(file.dims.values()) * np.dtype(np.float64).itemsize)
    return TableFile(file.url, is_parquet=True).pieces(list(file.columns.values()), rows)


def _checked(file: SideFile, name: str, vectors: pa.Array, numbers: np.ndarray) -> np.ndarray:
    """Vectors of some rows as float32 [n, dim].

    Args:
        file: The file.
        name: Of the vectors.
        vectors: Lists of floats, one a row.
        numbers: The rows' numbers in the file, for messages.
    """
    dim, column = file.dims[name], file.columns[name]
    if vectors.null_count:
        row = numbers[np.argmax(vectors.is_null().to_numpy(zero_copy_only=False))]
        raise InputError(f"{file.where}, row {row}: no vector in column {column!r}; fill it in, or leave the row out")
    wrong = pc.list_value_length(vectors).to_numpy(zero_copy_only=False) != dim
    if wrong.any():
        length = len(vectors[int(np.argmax(wrong))])
        raise InputError(
            f"{file.where}, row {numbers[np.argmax(wrong)]}: a vector of {length} numbers in column {column!r}, and the first row has "
            f"{dim}; write vectors of one length"
        )
    with np.errstate(over="ignore"):  # a float64 beyond float32 is infinite then, and refused
        values = vectors.flatten().to_numpy(zero_copy_only=False).astype(np.float32, copy=False).reshape(-1, dim)
    bad = ~np.isfinite(values).all(1)
    if bad.any():
        raise InputError(
            f"{file.where}, row {numbers[np.argmax(bad)]}: the vector in column {column!r} has a number that is missing, NaN or infinite "
            "as a 32 bit float; correct it"
        )
    return values
