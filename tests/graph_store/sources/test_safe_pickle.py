"""Pickled matrices: nothing in them is run, and what is no matrix is refused."""

import os
import pickle

import numpy as np
import pytest
from promptmm.graph_store.config import SourceConfig
from promptmm.graph_store.sources.formats import load_catalog
from promptmm.graph_store.sources.safe_pickle import load_matrix


def load(format, folder, **settings):
    return load_catalog(SourceConfig(format=format, path=str(folder), **settings))


class _Malicious:
    def __init__(self, function, *arguments):
        self.call = function, arguments

    def __reduce__(self):
        return self.call


@pytest.mark.parametrize("protocol", [0, 2, 5])
@pytest.mark.parametrize(
    ("function", "argument", "name"),
    [(os.system, "touch {}", "system"), (eval, "open({!r}, 'w')", "eval"), (getattr, "x", "getattr")],
)
def test_malicious_pickle(write_source, tmp_path, function, argument, name, protocol, fails):
    folder, mark = write_source("diffmm"), tmp_path / "mark"
    payload = _Malicious(function, argument.format(str(mark)))
    (folder / "trnMat.pkl").write_bytes(pickle.dumps(payload, protocol=protocol))
    with fails(folder / "trnMat.pkl", "the pickle names", f".{name};", "only scipy COO, CSR and CSC matrices"):
        load("diffmm", folder)
    assert not mark.exists()


def test_pickles_that_are_damaged_or_no_matrix(tmp_path, save_matrix, fails):
    path = tmp_path / "matrix.pkl"
    save_matrix(path, "train")
    whole = path.read_bytes()
    for content in (b"", whole[: len(whole) // 2], pickle.dumps([1, 2]), pickle.dumps(np.array([{}], object))):
        path.write_bytes(content)
        with fails(path, "not a readable pickle of a scipy COO, CSR or CSC matrix"):
            load_matrix(path)


def test_matrices_whose_indices_do_not_fit(write_source, fails):
    sparse = pytest.importorskip("scipy.sparse")
    folder = write_source("diffmm")
    matrix = sparse.coo_matrix((np.ones(2), ([0, 1], [0, 1])), shape=(4, 6))
    matrix.coords = (np.array([0, 9]), np.array([0, 1]))
    (folder / "valMat.pkl").write_bytes(pickle.dumps(matrix))
    with fails(folder / "valMat.pkl", "user 9 is out of range, expected 0 to 3"):
        load("diffmm", folder)
    (folder / "valMat.pkl").write_bytes(pickle.dumps(sparse.coo_matrix((4, 7))))
    with fails(folder / "valMat.pkl", "the matrix has shape (4, 7)", "has (4, 6)"):
        load("diffmm", folder)
    (folder / "valMat.pkl").write_bytes(pickle.dumps(sparse.csr_matrix((4, 6))))
    with fails(folder / "valMat.pkl", "no interactions in it"):
        load("diffmm", folder)
