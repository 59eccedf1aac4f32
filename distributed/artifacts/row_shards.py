"""Reads tables of vectors that an artifact keeps in shards of rows, without holding them in memory."""

import contextlib
import fcntl
import os
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from ...core.tensor_file import tensor_file

ROWS_A_SHARD = 1 << 18  # of what is written; readers take the first shard's rows


@dataclass(frozen=True)
class RowShards:
    """Reads rows by index from a memory-mapped table in shards.

    Attributes:
        shards: The shards in order, float32 [n, dim] each, with the same n but for the last one.
        whole_file: Where `whole` keeps the rows of several shards in one file, beside the artifact's own; None: in memory.
    """

    shards: list[Tensor]
    whole_file: Path | None = None

    @property
    def dim(self) -> int:
        """Returns the number of columns."""
        return self.shards[0].shape[1]

    @property
    def num_rows(self) -> int:
        """Returns the number of rows."""
        return sum(shard.shape[0] for shard in self.shards)

    def to(self, device: torch.device) -> "RowShards":
        """Returns the table on a device; on the CPU it stays memory-mapped."""
        return self if device.type == "cpu" else RowShards([shard.to(device) for shard in self.shards])

    def whole(self) -> Tensor:
        """Returns all rows as one tensor, memory-mapped: several shards are first written into one file, once for all processes."""
        if len(self.shards) == 1:
            return self.shards[0]
        if self.whole_file is None or not self.dim:
            return torch.cat(self.shards)
        try:
            self._write_whole(self.whole_file)
        except OSError:  # the folder cannot be written, or the disk is full
            return torch.cat(self.shards)
        return _load(self.whole_file)

    def _write_whole(self, path: Path) -> None:
        path.parent.mkdir(exist_ok=True)
        with _locked(path.with_suffix(".lock")):
            if path.exists():
                return
            aside = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}.tmp")
            try:
                with tensor_file(aside, {"rows": ("float32", (self.num_rows, self.dim))}) as arrays:
                    for shard, first in zip(self.shards, range(0, self.num_rows, self.shards[0].shape[0])):
                        arrays["rows"][first : first + shard.shape[0]] = shard.numpy()
                os.replace(aside, path)
            finally:
                aside.unlink(missing_ok=True)

    def __getitem__(self, rows: Tensor) -> Tensor:
        """Returns the rows of indices, int64 [n]: float32 [n, dim]."""
        rows = rows.to(self.shards[0].device)
        if len(self.shards) == 1:
            return self.shards[0][rows]
        size = self.shards[0].shape[0]
        out, which = torch.empty(rows.numel(), self.dim, device=rows.device), rows // size
        for number in torch.unique(which).tolist():
            chosen = (which == number).nonzero().squeeze(1)
            out[chosen] = self.shards[number][rows[chosen] - number * size]
        return out


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Lets one process of a host at a time into the block; the lock of a process that dies is gone with it."""
    with open(path, "w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _load(path: Path) -> Tensor:
    from safetensors.torch import load_file

    return load_file(str(path))["rows"]
