"""The folder of a raw catalog: its files are found, fetched if remote, or missed with a message that a person can act on."""

import contextlib
import tempfile
from collections.abc import Iterator
from pathlib import Path

from ...core.errors import InputError
from ...core.storage import filesystem, is_local, join, local_path, readable_file
from ..config import SourceConfig


def check_folder(config: SourceConfig) -> None:
    """Checks that the folder of the raw catalog, where the format has one, is there.

    Raises:
        InputError: it is not.
    """
    if config.path is not None:
        fs, path = filesystem(config.path)
        if not fs.exists(path):
            raise InputError(f"source.path={config.path}: no such folder")


@contextlib.contextmanager
def source_folder(config: SourceConfig) -> Iterator["SourceFolder"]:
    """Opens the folder of a raw catalog; arrays that are memory-mapped from a fetched copy stay valid after the block."""
    with tempfile.TemporaryDirectory(prefix="promptmm-source-") as cache:
        yield SourceFolder(config, Path(cache))


def _readable(path: Path) -> Path:
    """Returns a path after a look at the file, or at the files in the folder: each can be read and has an end."""
    if path.is_dir():
        for part in path.rglob("*"):
            if not part.is_dir():
                readable_file(part)
        return path
    return readable_file(path)


class SourceFolder:
    """The folder of a raw catalog, local or remote.

    Args:
        config: `path` and the names of files in it.
        cache: A local folder for remote files, kept as long as their arrays are loaded from it.
    """

    def __init__(self, config: SourceConfig, cache: Path) -> None:
        assert config.path is not None
        self.config, self._folder, self._cache = config, config.path, cache
        check_folder(config)

    def file(self, name: str, setting: str = "source.path") -> Path:
        """Finds the local copy of a file (or folder of parts) that must be there.

        Args:
            name: Relative to the folder, or absolute.
            setting: What to check where the file is missing.

        Raises:
            InputError: there is no such file, or it, or a part in its folder, cannot be read.
        """
        url = self._url(name)
        if not self._exists(url):
            raise InputError(f"{url}: no such file; check {setting}")
        if is_local(url):
            return _readable(local_path(url))
        fs, path = filesystem(url)
        target = self._cache / path.strip("/").replace("/", "_")
        fs.get(path, str(target), recursive=fs.isdir(path))
        return target

    def first(self, *names: str) -> str | None:
        """Finds the first of the names that exists."""
        return next((name for name in names if self._exists(self._url(name))), None)

    def matching(self, ending: str) -> list[str]:
        """Lists the names in the folder that end so, in order."""
        fs, path = filesystem(self._folder)
        names = (str(entry).rstrip("/").rsplit("/", 1)[-1] for entry in fs.ls(path, detail=False))
        return sorted(name for name in names if name.endswith(ending))

    def _url(self, name: str) -> str:
        return name if name.startswith("/") or "://" in name else join(self._folder, name)

    def _exists(self, url: str) -> bool:
        fs, path = filesystem(url)
        return fs.exists(path)
