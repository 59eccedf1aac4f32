"""Checkpoints of a training stage: complete or absent, found by the run's folder, the newest one first."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..core.errors import InputError
from ..core.storage import ShardWriter, filesystem, has_artifact, join, open_artifact, publish_manifest, remove, write_artifact

KEEP = 2
GROUP_BYTES = 128 * 2**20


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

    def save(self, epoch: int, tensors: dict[str, Tensor], state: dict[str, Any]) -> None:
        """Writes one checkpoint and removes all but the newest two.

        Args:
            epoch: Epochs finished.
            tensors: Whole tensors by name.
            state: JSON-able loop state (position, metrics history, best epoch).
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
    def read_tensors(folder: Path, name: str) -> dict[str, Tensor]:
        """What `add_tensors` added, memory-mapped."""
        from safetensors.torch import load_file

        return {key: t for path in sorted(folder.glob(f"{name}-*.safetensors")) for key, t in load_file(str(path)).items()}

    def publish(self, epoch: int, state: dict[str, Any], files: dict[str, dict]) -> None:
        """Completes a checkpoint of all workers' files and removes all but the newest two; rank 0 calls it."""
        publish_manifest(self._at(epoch), "checkpoint", {"epoch": epoch, "state": state}, files)
        for old in self._epochs()[:-KEEP]:
            remove(self._at(old))

    def latest(self) -> tuple[dict[str, Tensor], dict[str, Any]] | None:
        """Tensors and state of the newest complete checkpoint, or None."""
        from safetensors.torch import load_file

        found = self.complete(lambda name: True)
        if not found:
            return None
        folder, state = found[max(found)]
        return load_file(str(folder / "state.safetensors")), state

    def complete(self, wanted: Callable[[str], bool]) -> dict[int, tuple[Path, dict[str, Any]]]:
        """Local folder and state of every complete checkpoint by epoch; a state's `files` are the names of its files.

        Args:
            wanted: Which files are fetched and verified.
        """
        found = {}
        for epoch in self._epochs():
            if has_artifact(self._at(epoch)):
                try:
                    folder, manifest = open_artifact(self._at(epoch), "checkpoint", self.cache_dir, wanted)
                except InputError as error:  # damaged: the one before it loses less than starting again
                    print(f"checkpoint left out: {error}", flush=True)
                    continue
                found[epoch] = folder, {**manifest["state"], "files": [name for name in manifest["files"] if wanted(name)]}
        return found

    def clear(self) -> None:
        """Removes every checkpoint."""
        remove(self.url)


def adam_state(optimizer: torch.optim.Optimizer, module: torch.nn.Module, prefix: str) -> dict[str, Tensor]:
    """Weights and Adam state of a replicated module, by name."""
    out: dict[str, Tensor] = {}
    for name, parameter in module.named_parameters():
        out[f"{prefix}weight.{name}"] = parameter
        for key, value in optimizer.state.get(parameter, {}).items():
            out[f"{prefix}{key}.{name}"] = value
    return out


def load_adam_state(optimizer: torch.optim.Optimizer, module: torch.nn.Module, prefix: str, tensors: dict[str, Tensor]) -> None:
    """Restores what `adam_state` returned."""
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            parameter.copy_(tensors[f"{prefix}weight.{name}"])
            keys = [key for key in ("step", "exp_avg", "exp_avg_sq") if f"{prefix}{key}.{name}" in tensors]
            if keys:
                device = parameter.device
                optimizer.state[parameter] = {
                    key: tensors[f"{prefix}{key}.{name}"].clone().to("cpu" if key == "step" else device) for key in keys
                }


def with_prefix(prefix: str, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """The tensors with `prefix` before every name."""
    return {prefix + name: t for name, t in tensors.items()}


def take_prefix(prefix: str, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """The tensors whose name starts with `prefix`, without it."""
    return {name.removeprefix(prefix): t for name, t in tensors.items() if name.startswith(prefix)}
