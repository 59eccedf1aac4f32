"""Defines trackers, which take the numbers of every epoch beside the run's own metrics.jsonl, on rank 0.

A tracker has three methods, `start`, `record` and `close`. `run.trackers` names it; a tracker of your own is named module:Class.
"""

import shutil
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Protocol

from ...core.registry import Registry, declares
from ...core.storage import filesystem, is_local, join, local_path

if TYPE_CHECKING:
    from tensorboardX import SummaryWriter

Row = dict[str, float]


class Tracker(Protocol):
    """Describes a tracker; it is built without arguments, in the worker of rank 0."""

    component: ClassVar[str]

    def start(self, url: str, stage: str) -> None:
        """Begins a stage, new or resumed.

        Args:
            url: The stage's folder in the run: a path or an fsspec URL.
            stage: "teacher" or "student".
        """

    def record(self, row: Row) -> None:
        """Takes the numbers of one epoch: `epoch`, `loss`, `loss/<term>`, `validation/<metric>`, `seconds` and others."""

    def close(self) -> None:
        """Ends the stage, or this process's part of it; called after an error too."""


TRACKERS: Registry[type[Tracker]] = Registry(
    "tracker",
    "run.trackers",
    {"tensorboard": ".trackers:TensorBoard"},
    __package__,
    declares("tracker"),
    "a class with the attribute component = 'tracker' and the methods start, record and close",
)


class TensorBoard:
    """Writes TensorBoard events to `tensorboard/` in the stage's folder; where that is remote, they are uploaded when the stage ends."""

    component: ClassVar[str] = "tracker"

    def __init__(self) -> None:
        self._writer: SummaryWriter | None = None

    def start(self, url: str, stage: str) -> None:
        self._url, self._stage = url, stage

    def record(self, row: Row) -> None:
        if self._writer is None:
            from tensorboardX import SummaryWriter

            local = is_local(self._url)
            self._events = local_path(join(self._url, "tensorboard")) if local else Path(tempfile.mkdtemp(prefix="promptmm-events-"))
            self._writer = SummaryWriter(str(self._events), purge_step=int(row["epoch"]))
        for name, value in row.items():
            if isinstance(value, int | float) and name != "epoch":
                self._writer.add_scalar(f"{self._stage}/{name}", value, int(row["epoch"]))
        self._writer.flush()

    def close(self) -> None:
        if self._writer is None:
            return
        self._writer.close()
        if not is_local(self._url):
            fs, path = filesystem(join(self._url, "tensorboard"))
            for file in self._events.iterdir():
                fs.put_file(str(file), f"{path}/{file.name}")
            shutil.rmtree(self._events)
