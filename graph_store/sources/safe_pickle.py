"""Reads the scipy sparse matrices that PromptMM and DiffMM publish as pickles, without running anything in them.

Every global a pickle may name is replaced by a stand-in of this module: neither numpy nor scipy objects are built from
the pickle's state, so it matters neither which versions of them wrote it, nor what a crafted state would make them do.
"""

import pickle
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from ...core.errors import InputError

_SPARSE_MODULE = re.compile(r"scipy\.sparse(\._?(coo|csr|csc))?")
_SPARSE_CLASS = re.compile(r"(coo|csr|csc)_(matrix|array)")


@dataclass(frozen=True)
class SparseMatrix:
    """The positions of a sparse matrix's non-zero entries."""

    shape: tuple[int, int]
    rows: np.ndarray  # [nnz] int64
    columns: np.ndarray  # [nnz] int64


class _Dtype:
    """Stand-in for numpy.dtype: numbers only."""

    def __init__(self, spec: str, align: bool = False, copy: bool = False) -> None:
        if not re.fullmatch(r"[biuf]\d+", spec):
            raise ValueError(f"array of type {spec!r}, expected numbers")
        self.dtype = np.dtype(spec)

    def __setstate__(self, state: tuple) -> None:
        if state[1] in ("<", ">"):
            self.dtype = self.dtype.newbyteorder(state[1])


class _Array:
    """Stand-in for numpy.ndarray; `values` is the array."""

    values: np.ndarray

    def __setstate__(self, state: tuple) -> None:
        _, shape, dtype, is_fortran, raw = state
        self.values = _array(raw, dtype, shape, "F" if is_fortran else "C")


class _Matrix:
    """Stand-in for scipy's sparse classes: a bag of attributes."""

    format = ""


class _Coo(_Matrix):
    format = "coo"


class _Csr(_Matrix):
    format = "csr"


class _Csc(_Matrix):
    format = "csc"


def _array(raw: bytes, dtype: _Dtype, shape: tuple, order: Literal["C", "F"]) -> np.ndarray:
    data = raw.encode("latin1") if isinstance(raw, str) else raw  # Python 2 pickles
    return np.frombuffer(data, dtype.dtype).reshape(shape, order=order)


def _reconstruct(array_type: object, shape: object, typecode: object) -> _Array:
    return _Array()


def _frombuffer(raw: bytes, dtype: _Dtype, shape: tuple, order: Literal["C", "F"]) -> _Array:
    array = _Array()
    array.values = _array(raw, dtype, shape, order)
    return array


def _scalar(dtype: _Dtype, raw: bytes) -> object:
    return _array(raw, dtype, (1,), "C")[0].item()


def _encode(text: str, encoding: str) -> bytes:
    return text.encode("latin1")


def _reconstructor(matrix_type: type[_Matrix], base: object, state: object) -> _Matrix:
    return matrix_type()


_STAND_INS: dict[str, object] = {
    "numpy.ndarray": _Array,
    "numpy.dtype": _Dtype,
    "numpy.core.multiarray._reconstruct": _reconstruct,
    "numpy.core.multiarray.scalar": _scalar,
    "numpy.core.numeric._frombuffer": _frombuffer,
    "_codecs.encode": _encode,
    "copyreg._reconstructor": _reconstructor,
    "copy_reg._reconstructor": _reconstructor,
    "builtins.object": object,
    "__builtin__.object": object,
}
_MATRICES = {"coo": _Coo, "csr": _Csr, "csc": _Csc}


class _Unpickler(pickle.Unpickler):
    def __init__(self, file: Any, path: Path) -> None:
        super().__init__(file, encoding="latin1")
        self._path = path

    def find_class(self, module: str, name: str) -> object:
        sparse = _SPARSE_CLASS.fullmatch(name)
        if sparse and _SPARSE_MODULE.fullmatch(module):
            return _MATRICES[sparse[1]]
        known = f"{module.replace('numpy._core', 'numpy.core')}.{name}"
        if known not in _STAND_INS:
            raise InputError(
                f"{self._path}: the pickle names {module}.{name}; only scipy COO, CSR and CSC matrices and "
                "numpy arrays are read from pickles. Save it as one of these; do not trust a file you did not make"
            )
        return _STAND_INS[known]


def load_matrix(path: Path) -> SparseMatrix:
    """Reads the non-zero positions of a pickled scipy COO, CSR or CSC matrix.

    Raises:
        InputError: the file is missing, truncated, no such matrix, or names any other global.
    """
    try:
        with open(path, "rb") as file:
            matrix = _Unpickler(file, path).load()
        if not isinstance(matrix, _Matrix):
            raise ValueError(f"it holds a {type(matrix).__name__.lstrip('_')}")
        return _positions(matrix)
    except InputError:
        raise
    except FileNotFoundError as error:
        raise InputError(f"{path}: no such file") from error
    except Exception as error:  # a damaged pickle can raise anything
        raise InputError(
            f"{path}: not a readable pickle of a scipy COO, CSR or CSC matrix ({error}); it may be truncated: write it again"
        ) from error


def _positions(matrix: _Matrix) -> SparseMatrix:
    state = vars(matrix)
    num_rows, num_columns = (int(size) for size in state["_shape"])
    values = state["data"].values
    if matrix.format == "coo":
        rows, columns = (index.values for index in state.get("coords") or (state["row"], state["col"]))
    else:
        pointers, minor = state["indptr"].values.astype(np.int64), state["indices"].values
        num_major = num_rows if matrix.format == "csr" else num_columns
        if len(pointers) != num_major + 1 or pointers[0] != 0:
            raise ValueError("its index pointers do not fit its shape")
        major = np.repeat(np.arange(num_major), np.diff(pointers))
        rows, columns = (major, minor) if matrix.format == "csr" else (minor, major)
    if not (rows.shape == columns.shape == values.shape == (len(values),)):
        raise ValueError("its index arrays differ in length")
    kept = values != 0
    return SparseMatrix((num_rows, num_columns), rows[kept].astype(np.int64), columns[kept].astype(np.int64))
