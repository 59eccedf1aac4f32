"""The vectors of teachers that were trained elsewhere: whether they fit the dataset, and the checksums of their files."""

import functools
import hashlib

from ...core.config import TeacherConfig
from ...core.config.vectors import VectorsConfig
from ...core.errors import InputError
from ...core.storage import filesystem
from ...core.teacher import teacher_kind
from ...core.teacher.ensemble import in_part, parts_of
from ...core.vector_files import VectorFiles
from ...graph_store.dataset import Dataset
from ...graph_store.sources.vector_table import place_rows

_BLOCK = 1 << 22  # bytes that are hashed at a time


def check_vectors(teacher: TeacherConfig, dataset: Dataset) -> None:
    """Checks the columns and the ids of every file of vectors that a teacher, or a component of it, is read from.

    The vectors themselves are checked as they are read.

    Raises:
        InputError: a file is missing, lacks a column, or does not fit the other side's or the dataset.
    """
    for name, part in _imported(teacher).items():
        with in_part(teacher, name):
            for file in VectorFiles.of(part.vectors).sides:
                place_rows(file, dataset)


def vector_files(teacher: TeacherConfig) -> dict[VectorsConfig, VectorFiles]:
    """Describes the files of vectors that a teacher, or a component of it, is read from, by the settings that name them.

    Raises:
        InputError: a file is missing or lacks a column, or the two sides' do not fit each other.
    """
    found = {}
    for name, part in _imported(teacher).items():
        with in_part(teacher, name):
            found[part.vectors] = VectorFiles.of(part.vectors)
    return found


def checksums(teacher: TeacherConfig) -> dict[str, str]:
    """Computes the SHA-256 of the files that a teacher, or a component of it, is read from, by URL; of a folder that of its files' names
    and checksums.

    Raises:
        InputError: a file is missing.
    """
    found = {}
    for name, part in _imported(teacher).items():
        with in_part(teacher, name):
            for setting, url in zip(("users", "items"), part.vectors.urls):
                try:
                    found[url] = _checksum(url)
                except FileNotFoundError as error:
                    raise InputError(f"teacher.vectors.{setting}={url}: no such file; write the vectors there again") from error
    return found


def _imported(teacher: TeacherConfig) -> dict[str, TeacherConfig]:
    """The parts of a teacher that were trained elsewhere, by name."""
    return {name: part for name, part in parts_of(teacher).items() if teacher_kind(part).is_imported}


def _checksum(url: str) -> str:
    fs, path = filesystem(url)
    files = sorted(fs.find(path))  # the file itself where it is no folder
    if not files:
        raise FileNotFoundError(url)
    by_name = {name.removeprefix(path).lstrip("/"): _checksum_of_file(fs, name, fs.ukey(name)) for name in files}
    if list(by_name) == [""]:
        return by_name[""]
    return hashlib.sha256("\n".join(f"{name} {checksum}" for name, checksum in by_name.items()).encode()).hexdigest()


@functools.lru_cache(maxsize=4096)
def _checksum_of_file(fs: object, path: str, key: str) -> str:
    """The SHA-256 of a file, computed once in a process for each of its states, which `key` stands for: a command asks several times."""
    digest = hashlib.sha256()
    with fs.open(path, "rb") as file:  # type: ignore[attr-defined]
        while block := file.read(_BLOCK):
            digest.update(block)
    return digest.hexdigest()
