"""Encodes label blocks: the Arrow tables in which teacher labels travel and are kept (docs/formats.md).

A block holds the examples of whole steps of one epoch, or of one worker's share of them, in the epoch's order. Its columns are `user`
int32, `candidates` int32 [1 + K] (the positive first), `scores` and `scores.<modality>` float16 [1 + K], and the constants `revision`,
`epoch` and `block`, int32. Scores are differences from the positive's score: every loss depends on differences only, and float16 would
cut digits from large absolute values.
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
    """Returns a block as an Arrow table.

    Args:
        labels: The block's labels, with scores.
        modalities: Names of the modalities, in the order of `labels.modal_scores`.
        revision, epoch, block: The revision of the prompt, the epoch and the number of the block.

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
    """Returns the labels of a block, without a copy where the table is one chunk; scores stay float16.

    Args:
        table: The block's Arrow table.
        modalities: Names of the modalities, in the teacher's order.
        revision, epoch, block: The revision, epoch and number that the block should have.

    Raises:
        InputError: the block has another revision, epoch or number.
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
    """Returns the name of a block's file below the labels' folder."""
    return f"epoch-{epoch:05d}/block-{block:05d}.arrow"


def labels_url(run_url: str, revision: int) -> str:
    """Returns the URL of a revision's materialised labels."""
    return join(run_url, "labels", f"rev-{revision}")
