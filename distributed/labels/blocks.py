"""Label blocks: the Arrow tables in which teacher labels travel and are kept (docs/formats.md).

A block holds the examples of whole steps of one epoch, in the epoch's order. Columns: `user` int32, `candidates` int32 [1 + K] (the
positive first), `scores` and `scores.<modality>` float16 [1 + K] relative to the positive's (float16 loses large absolute values, and
every loss depends on differences only), and the constants `revision`, `epoch`, `block`. Scores travel, features never.
"""

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor

from ...core.errors import InputError
from ...core.objectives import Labels
from ...core.storage import join

FLOAT16_MAX = 65504.0


def labels_to_table(labels: Labels, modalities: list[str], revision: int, epoch: int, block: int) -> pa.Table:
    """Returns the block's Arrow table.

    Raises:
        InputError: a relative score does not fit float16.
    """
    assert labels.scores is not None
    assert labels.modal_scores is not None
    width, count = labels.candidates.shape[1], len(labels)

    def lists(x: np.ndarray) -> pa.FixedSizeListArray:
        return pa.FixedSizeListArray.from_arrays(pa.array(np.ascontiguousarray(x).reshape(-1)), width)

    def halves(name: str, x: Tensor) -> pa.FixedSizeListArray:
        largest = float(x.abs().max()) if count else 0.0
        if not largest <= FLOAT16_MAX:
            raise InputError(
                f"label block {block} of epoch {epoch}: {name} reach {largest:.3g}, float16 ends at {FLOAT16_MAX:.0f}; "
                "raise teacher.l2 or teacher.feature_decay, or lower the teacher's learning rates"
            )
        return lists(x.numpy().astype(np.float16))

    def constant(value: int) -> pa.Array:
        return pa.array(np.full(count, value, dtype=np.int32))

    columns = {
        "user": pa.array(labels.users.numpy().astype(np.int32)),
        "candidates": lists(labels.candidates.numpy().astype(np.int32)),
        "scores": halves("scores", labels.scores),
        **{f"scores.{m}": halves(f"scores of {m}", x) for m, x in zip(modalities, labels.modal_scores)},
        "revision": constant(revision),
        "epoch": constant(epoch),
        "block": constant(block),
    }
    return pa.table(columns)


def table_to_labels(table: pa.Table, modalities: list[str], revision: int, epoch: int, block: int) -> Labels:
    """Returns the block's labels, zero-copy where the table is one chunk.

    Raises:
        InputError: the block is not of the revision, epoch and number that the student was told.
    """

    def column(name: str) -> np.ndarray:
        array = table[name].combine_chunks()
        if isinstance(array, pa.ChunkedArray):
            array = array.chunk(0)
        flat = array.flatten() if pa.types.is_fixed_size_list(array.type) else array
        values = flat.to_numpy(zero_copy_only=True)
        return values.reshape(len(array), -1) if pa.types.is_fixed_size_list(array.type) else values

    for name, expected in (("revision", revision), ("epoch", epoch), ("block", block)):
        values = column(name)
        if values.size and not (values[0] == values[-1] == expected):
            raise InputError(f"label block {block} of epoch {epoch}: {name} {values[0]} found, {expected} expected; run label again")

    def tensor(name: str) -> Tensor:
        values = column(name)
        return torch.from_numpy(values if values.flags.writeable else values.copy())

    scores = tensor("scores")
    modal = torch.stack([tensor(f"scores.{m}") for m in modalities]) if modalities else scores.new_zeros(0, *scores.shape)
    return Labels(tensor("user"), tensor("candidates"), scores, modal)


def block_name(epoch: int, block: int) -> str:
    """Returns the file of a block below the labels' folder."""
    return f"epoch-{epoch:05d}/block-{block:05d}.arrow"


def labels_url(run_url: str, revision: int) -> str:
    """Returns where the materialised labels of a revision are."""
    return join(run_url, "labels", f"rev-{revision}")
