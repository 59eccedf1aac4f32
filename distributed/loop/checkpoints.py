"""Checkpoints of a training stage: complete or absent, found by the run's folder, the newest one first."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TypedDict

from torch import Tensor

from ...core.errors import InputError
from ...core.storage import ShardWriter, filesystem, has_artifact, join, open_artifact, publish_manifest, remove, write_artifact
from .selection import SelectionState
from .trackers import Row

KEEP = 2
GROUP_BYTES = 128 * 2**20


class EpochFacts(TypedDict):
    """What the epoch loop keeps with a checkpoint; JSON-able.

    Attributes:
        epochs: Epochs finished.
        history: The rows of metrics.jsonl.
        selection: The best epoch so far.
    """

    epochs: int
    history: list[Row]
    selection: SelectionState


class LoopFacts(EpochFacts, total=False):
    """The same, with what a trainer adds.

    Attributes:
        steps: Steps taken, where the trainer counts them.
    """

    steps: int


@dataclass(frozen=True)
class Complete:
    """A complete checkpoint on this host: its folder, the loop's facts, and the names of the files that were asked for."""

    folder: Path
    facts: LoopFacts
    files: list[str]


@dataclass(frozen=True)
class Checkpoints:
    """The checkpoints below one URL.

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
            epoch: Epochs finished.
            tensors: Whole tensors by name.
            state: The loop's facts.
        """
        from safetensors.torch import save_file

        with write_artifact(self._at(epoch), "checkpoint", {"epoch": epoch, "state": state}) as folder:
            save_file(
                {name: t.detach().cpu().contiguous().clone() for name, t in tensors.items()},
                str(folder / "state.safetensors"),
            )
        for old in self._epochs()[:-KEEP]:
            remove(self._at(old))

    def shard_writer(self, epoch: int) -> ShardWriter:
        """For one worker's files of a checkpoint that all workers write; `publish` completes it."""
        return ShardWriter(self._at(epoch))

    @staticmethod
    def add_tensors(writer: ShardWriter, name: str, tensors: Iterable[tuple[str, Tensor]]) -> None:
        """Adds files `name`-00000.safetensors, ... to a worker's; some `GROUP_BYTES` of tensors are in memory at a time."""
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
        """Returns what `add_tensors` added under a name, memory-mapped."""
        from safetensors.torch import load_file

        files = sorted(file for file in checkpoint.files if file.startswith(f"{name}-"))
        return {key: t for file in files for key, t in load_file(str(checkpoint.folder / file)).items()}

    def publish(self, epoch: int, state: LoopFacts, files: dict[str, dict]) -> None:
        """Completes a checkpoint of all workers' files and removes all but the newest two; rank 0 calls it."""
        publish_manifest(self._at(epoch), "checkpoint", {"epoch": epoch, "state": state}, files)
        for old in self._epochs()[:-KEEP]:
            remove(self._at(old))

    def latest(self) -> tuple[dict[str, Tensor], LoopFacts] | None:
        """Tensors and facts of the newest complete checkpoint of one file, or None."""
        from safetensors.torch import load_file

        complete = self.complete(lambda name: True)
        if not complete:
            return None
        newest = complete[max(complete)]
        return load_file(str(newest.folder / "state.safetensors")), newest.facts

    def complete(self, wanted: Callable[[str], bool]) -> dict[int, Complete]:
        """Returns every complete checkpoint by its epoch.

        Args:
            wanted: Which files are fetched and verified.
        """
        complete = {}
        for epoch in self._epochs():
            if has_artifact(self._at(epoch)):
                try:
                    folder, manifest = open_artifact(self._at(epoch), "checkpoint", self.cache_dir, wanted)
                except InputError as error:  # damaged: the one before it loses less than starting again
                    print(f"checkpoint left out: {error}", flush=True)
                    continue
                complete[epoch] = Complete(folder, manifest["state"], [name for name in manifest["files"] if wanted(name)])
        return complete

    def clear(self) -> None:
        """Removes every checkpoint."""
        remove(self.url)
