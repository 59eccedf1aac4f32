"""Writes and finds a training stage's checkpoints in the run's folder; a checkpoint is complete or absent."""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TypedDict

from torch import Tensor

from ...core.artifact import ShardWriter, has_artifact, open_artifact, publish_manifest, write_artifact
from ...core.errors import InputError
from ...core.storage import filesystem, join, remove
from ...core.tensor_file import save_tensors
from .selection import SelectionState
from .trackers import Row

KEEP = 2  # the number of checkpoints that are kept
GROUP_BYTES = 128 * 2**20


class EpochFacts(TypedDict):
    """Holds what the epoch loop saves with a checkpoint; JSON-able.

    Attributes:
        epochs: The number of finished epochs.
        history: The rows of metrics.jsonl.
        selection: The state of the selection of the best epoch.
    """

    epochs: int
    history: list[Row]
    selection: SelectionState


class LoopFacts(EpochFacts, total=False):
    """Holds what the epoch loop and the trainer save with a checkpoint; JSON-able.

    Attributes:
        steps: The number of steps taken, where the trainer counts them.
    """

    steps: int


@dataclass(frozen=True)
class Complete:
    """Describes a complete checkpoint on this host.

    Attributes:
        folder: The local folder of its files.
        facts: The facts of loop and trainer.
        files: The names of those of its files that were asked for.
    """

    folder: Path
    facts: LoopFacts
    files: list[str]


@dataclass(frozen=True)
class Checkpoints:
    """Writes, finds and removes the checkpoints below one URL.

    Attributes:
        url: Folder of the checkpoints.
        cache_dir: Folder for local copies where the URL is remote.
    """

    url: str
    cache_dir: str | None = None

    def _epochs(self) -> list[int]:
        fs, path = filesystem(self.url)
        if not fs.exists(path):
            return []
        names = [entry.rstrip("/").rsplit("/", 1)[-1] for entry in fs.ls(path, detail=False)]
        return sorted(int(name[6:]) for name in names if name.startswith("epoch-") and name[6:].isdigit())

    def _at(self, epoch: int) -> str:
        return join(self.url, f"epoch-{epoch:06d}")

    def save(self, epoch: int, tensors: dict[str, Tensor], state: LoopFacts) -> None:
        """Writes one checkpoint and removes all but the newest two.

        Args:
            epoch: The number of finished epochs.
            tensors: Whole tensors by name.
            state: The facts of loop and trainer.
        """
        with write_artifact(self._at(epoch), "checkpoint", {"epoch": epoch, "state": state}) as folder:
            save_tensors(folder / "state.safetensors", {name: t.detach().cpu() for name, t in tensors.items()})
        self._remove_old()

    def shard_writer(self, epoch: int) -> ShardWriter:
        """Returns the writer of one worker's files of a checkpoint that all workers write; `publish` completes the checkpoint."""
        return ShardWriter(self._at(epoch))

    @staticmethod
    def add_tensors(writer: ShardWriter, name: str, tensors: Iterable[tuple[str, Tensor]]) -> None:
        """Writes tensors to the files `name`-00000.safetensors, `name`-00001.safetensors, ..., about `GROUP_BYTES` to each.

        Memory holds the tensors of one file at a time.

        Args:
            writer: The writer of this worker's files.
            name: Begins the names of the files.
            tensors: Names and tensors; the iterator may make a tensor when it is asked for.
        """
        from safetensors.torch import save

        group: dict[str, Tensor] = {}
        number = 0

        def flush() -> None:
            nonlocal number
            writer.add(f"{name}-{number:05d}.safetensors", save(group))
            number += 1
            group.clear()

        for key, value in tensors:
            if group and sum(t.nbytes for t in group.values()) + value.nbytes > GROUP_BYTES:
                flush()
            group[key] = value.detach().cpu().contiguous()
            del value
        flush()

    @staticmethod
    def read_tensors(checkpoint: Complete, name: str) -> dict[str, Tensor]:
        """Returns the tensors that `add_tensors` wrote under a name, memory-mapped."""
        from safetensors.torch import load_file

        files = sorted(file for file in checkpoint.files if file.startswith(f"{name}-"))
        return {key: t for file in files for key, t in load_file(str(checkpoint.folder / file)).items()}

    def publish(self, epoch: int, state: LoopFacts, files: dict[str, dict]) -> None:
        """Completes a checkpoint that all workers have written, and removes all but the newest two; rank 0 calls it.

        Args:
            epoch: The number of finished epochs.
            state: The facts of loop and trainer.
            files: Size and SHA-256 of all workers' files by name.
        """
        publish_manifest(self._at(epoch), "checkpoint", {"epoch": epoch, "state": state}, files)
        self._remove_old()

    def _remove_old(self) -> None:
        for old in self._epochs()[:-KEEP]:
            remove(self._at(old))

    def latest(self) -> tuple[dict[str, Tensor], LoopFacts] | None:
        """Returns tensors and facts of the newest complete checkpoint that `save` wrote; None if there is none."""
        from safetensors.torch import load_file

        _, newest = next(self._newest_first(lambda name: True), (0, None))
        if newest is None:
            return None
        return load_file(str(newest.folder / "state.safetensors")), newest.facts

    def complete(self, wanted: Callable[[str], bool]) -> dict[int, Complete]:
        """Returns every complete checkpoint by its number of finished epochs; a damaged one is left out, and a line says so.

        Args:
            wanted: Whether a file, by its name, is needed; the others are neither fetched nor verified.
        """
        return dict(self._newest_first(wanted))

    def _newest_first(self, wanted: Callable[[str], bool]) -> Iterator[tuple[int, Complete]]:
        """Yields what `complete` returns, from the newest one on, each fetched and verified when it is asked for."""
        for epoch in reversed(self._epochs()):
            if has_artifact(self._at(epoch)):
                try:
                    folder, manifest = open_artifact(self._at(epoch), "checkpoint", self.cache_dir, wanted)
                except InputError as error:  # going on from the checkpoint before a damaged one loses less than a new start
                    print(f"checkpoint left out: {error}", flush=True)
                    continue
                yield epoch, Complete(folder, manifest["state"], [name for name in manifest["files"] if wanted(name)])

    def clear(self) -> None:
        """Removes every checkpoint."""
        remove(self.url)
