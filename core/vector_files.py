"""Describes Parquet files of user and item vectors that another model exported, from their schemas and first rows.

A file (or a folder of them) has a row for each user, or item, in any order, and the columns

    user, item or id     the raw id, an integer or a string
    final or vector      the vector whose dot products with the other side's are the scores
    modal.<modality>     the same by modality, on both sides alike; as many as there are, or none

Vectors are lists, of fixed size or not, of 16, 32 or 64 bit floats. Other columns are not read.
"""

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from .config.vectors import VectorsConfig
from .errors import InputError
from .parquet import open_parquet
from .sides import SIDE_NAMES, SIDES, USERS
from .storage import exists

if TYPE_CHECKING:
    import pyarrow as pa
    import pyarrow.dataset

FINAL, MODAL = "final", "modal."
FINAL_COLUMNS = (FINAL, "vector")
SETTINGS = ("teacher.vectors.users", "teacher.vectors.items")  # by side


@dataclass(frozen=True)
class SideFile:
    """Describes the file of one side.

    Attributes:
        side: Users or items.
        url: The file, or the folder of files.
        id_column: The column of raw ids.
        columns: The columns of vectors by their name here, `final` and `modal.<modality>`.
        dims: Columns of the vectors by the same names, in the same order.
        unread: Columns that are not read.
    """

    side: int
    url: str
    id_column: str
    columns: dict[str, str]
    dims: dict[str, int]
    unread: tuple[str, ...]

    @property
    def where(self) -> str:
        """Returns the setting and the file, as messages begin."""
        return f"{SETTINGS[self.side]}={self.url}"

    @staticmethod
    def of(side: int, url: str) -> "SideFile":
        """Reads schema and first row.

        Args:
            side: Users or items.
            url: The file, or the folder of files.

        Raises:
            InputError: there is none, it is not Parquet, or it lacks a column or has one of another type.
        """
        import pyarrow as pa

        where = f"{SETTINGS[side]}={url}"
        if not exists(url):
            raise InputError(f"{where}: no such file or folder; write the vectors there, or name where they are")
        try:
            table = open_parquet(url)
            id_column, columns, unread = _columns(where, table.schema, side)
            first = table.scanner(columns=list(columns.values()), batch_size=1, batch_readahead=1, fragment_readahead=1).head(1)
        except (pa.ArrowException, OSError) as error:
            raise InputError(
                f"{where}: cannot be read as Parquet ({error}); it may be truncated or of another format: write it again as Parquet"
            ) from error
        if not first.num_rows:
            raise InputError(f"{where}: the file has no rows; write a row for every {SIDE_NAMES[side]}")
        dims = {name: _length(where, first, column) for name, column in columns.items()}
        return SideFile(side, url, id_column, columns, dims, unread)


@dataclass(frozen=True)
class VectorFiles:
    """Describes the files of both sides, which have the same vectors of the same lengths; those of all modalities have one length.

    Attributes:
        sides: The users' file and the items'.
    """

    sides: tuple[SideFile, SideFile]

    @property
    def dims(self) -> dict[str, int]:
        """Returns the columns of the vectors by name, `final` and `modal.<modality>`, in the order of the users' file."""
        return self.sides[USERS].dims

    @property
    def modal_dims(self) -> dict[str, int]:
        """Returns the columns of the vectors by modality."""
        return {name.removeprefix(MODAL): dim for name, dim in self.dims.items() if name.startswith(MODAL)}

    @staticmethod
    def of(config: VectorsConfig) -> "VectorFiles":
        """Reads schemas and first rows of both files.

        Raises:
            InputError: a file is missing, is not Parquet or lacks a column, or the two do not fit each other.
        """
        users, items = (SideFile.of(side, url) for side, url in zip(SIDES, config.urls))  # the kind's check has found both
        for one, other in ((users, items), (items, users)):
            lacking = [one.columns[name] for name in one.columns if name not in other.columns]
            if lacking:
                raise InputError(
                    f"{other.where}: no column {lacking[0]!r}, which {one.url} has; write the vectors of a modality for users and items "
                    "alike, or for neither"
                )
        for name, dim in users.dims.items():
            if items.dims[name] != dim:
                raise InputError(
                    f"{items.where}: vectors of {items.dims[name]} numbers in column {items.columns[name]!r}, and those of the users have "
                    f"{dim} in {users.url}; scores are dot products, so write both with the same length"
                )
        modal = [name for name in users.dims if name.startswith(MODAL)]
        for name in modal[1:]:
            if users.dims[name] != users.dims[modal[0]]:
                raise InputError(
                    f"{users.where}: vectors of {users.dims[name]} numbers in column {name!r}, and of {users.dims[modal[0]]} in column "
                    f"{modal[0]!r}; write those of all modalities with one length: zeros at the end change no dot product"
                )
        return VectorFiles((users, items))


def _columns(where: str, schema: "pa.Schema", side: int) -> tuple[str, dict[str, str], tuple[str, ...]]:
    """Returns the column of ids, those of vectors by name, and those that are not read."""
    names = schema.names
    if not names:
        raise InputError(f"{where}: no Parquet file in this folder; write one there")
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise InputError(f"{where}: {names.count(twice[0])} columns are named {twice[0]!r}; keep one")
    id_column = _one_of(where, names, (SIDE_NAMES[side], "id"), "the raw ids")
    final = _one_of(where, names, FINAL_COLUMNS, "the vectors whose dot products are the scores")
    modal = [name for name in names if name.startswith(MODAL)]
    for name in modal:
        if not re.fullmatch(r"[A-Za-z0-9_-]+", name.removeprefix(MODAL)):
            raise InputError(f"{where}: column {name!r}: use letters, digits, - and _ only in the name of a modality")
    columns = {FINAL: final, **{name: name for name in modal}}
    for column in columns.values():
        kind: Any = schema.field(column).type
        if not _is_vector(kind):
            raise InputError(f"{where}: column {column!r} holds {kind}; write lists of 16, 32 or 64 bit floats")
    return id_column, columns, tuple(name for name in names if name not in (id_column, *columns.values()))


def _one_of(where: str, names: list[str], candidates: tuple[str, str], what: str) -> str:
    """Returns the one of two columns that is there."""
    found = [name for name in candidates if name in names]
    if not found:
        raise InputError(f"{where}: no column {' or '.join(candidates)}, it has {', '.join(names)}; name the column of {what} so")
    if len(found) > 1:
        raise InputError(f"{where}: both columns {' and '.join(found)} are there; keep the one with {what}")
    return found[0]


def _is_vector(kind: Any) -> bool:
    import pyarrow as pa

    is_list = pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind)
    return is_list and pa.types.is_floating(kind.value_type)


def _length(where: str, first: "pa.Table", column: str) -> int:
    """Returns how many numbers the vector of the first row has."""
    vector = first[column][0].as_py()
    if not vector:
        raise InputError(
            f"{where}, row 0: {'no vector' if vector is None else 'a vector without numbers'} in column {column!r}; fill it in"
        )
    return len(vector)
