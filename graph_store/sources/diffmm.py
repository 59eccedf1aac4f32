"""`source.format=diffmm`: pickled scipy matrices of users and items, one for each split, and .npy features."""

from ...core.errors import InputError
from ..catalog import Catalog
from ..config import SourceConfig
from .folder import source_folder
from .indexed import PairsFile, indexed_catalog
from .kinds import Source
from .npy import feature_files
from .safe_pickle import load_matrix

FILES = {"train": "trnMat.pkl", "validation": "valMat.pkl", "test": "tstMat.pkl"}


def load(config: SourceConfig) -> Catalog:
    """Reads the catalog; all interactions are in memory."""
    with source_folder(config) as source:
        paths = {split: source.file(name) for split, name in FILES.items()}
        matrices = {split: load_matrix(path) for split, path in paths.items()}
        shape = matrices["train"].shape
        for split, matrix in matrices.items():
            if matrix.shape != shape:
                raise InputError(f"{paths[split]}: the matrix has shape {matrix.shape}, {paths['train']} has {shape}")
        splits = {split: PairsFile(paths[split], (matrix.rows, matrix.columns)) for split, matrix in matrices.items()}
        return indexed_catalog(splits, feature_files(source), shape)


SOURCE = Source(load, reads_whole=True)
