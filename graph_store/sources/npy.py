"""Features in .npy files, row i that of item i: the files of a folder, and their checks."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from ...core.errors import InputError
from ..catalog import CHUNK_ROWS, check_finite, check_rows
from .folder import SourceFolder

FEATURES_ENDING = "_feat.npy"
MODALITY_NAMES = {"image": "visual", "audio": "acoustic", "text": "textual"}  # as MMRec and others name files


def feature_files(source: SourceFolder, renamed: Mapping[str, str] = MODALITY_NAMES) -> dict[str, Path]:
    """Finds the feature files by modality: those of `source.modalities`, or else every *_feat.npy there is.

    Args:
        source: The folder.
        renamed: Modality of a file's prefix, where it is not the prefix itself.
    """
    names = source.config.modalities
    if names is None:
        prefixes = {name.removesuffix(FEATURES_ENDING): name for name in source.matching(FEATURES_ENDING)}
        names = {renamed.get(prefix, prefix): name for prefix, name in prefixes.items()}
    return {modality: source.file(name, f"source.modalities.{modality}") for modality, name in names.items()}


def load_npy(modality: str, path: Path) -> np.ndarray:
    """Maps a .npy file of numbers to memory; its shape and values are checked by `check_npy`.

    Raises:
        InputError: it is damaged, or holds objects.
    """
    try:
        return np.load(path, mmap_mode="r", allow_pickle=False)
    except (ValueError, OSError, EOFError) as error:
        raise InputError(f"modality {modality!r}: {path} is not a readable .npy file of numbers ({error})") from error


def check_npy(modality: str, path: Path, rows: np.ndarray, num_items: int) -> None:
    """Checks the shape and, chunk by chunk, the values of a feature file.

    Args:
        modality, path: For the message.
        rows: What is in the file, [num_items, dim] where it is right.
        num_items: Items of the catalog.

    Raises:
        InputError: another shape, no numbers, or a value that is not finite.
    """
    check_rows(modality, str(path), rows, num_items)
    for start in range(0, num_items, CHUNK_ROWS):
        chunk = rows[start : start + CHUNK_ROWS]
        check_finite(modality, str(path), chunk, np.ones(len(chunk), bool), start)
