"""Writes and reads the sampled engine's checkpoints in shards, which any number of workers can read.

`user-<part>-<begin>-<end>.safetensors` and `item-...` hold a run of a part's rows, with Adam's moments and the rows' best copy.
`dense-<n>` hold the replicated weights with their optimizers' state, and `best-<n>` hold the best replicated weights.
"""

import torch
from torch import Tensor

from ....core.sides import SIDE_NAMES
from ....graph_store.ownership import Owners, Piece
from ...loop.checkpoints import Checkpoints, Complete, LoopFacts
from ...worker import Worker
from ..learners import Learner, restore_state, whole_state_stream, with_prefix
from .inference import chunks
from .sparse_adam import AdamTable

ROWS_A_FILE = 1 << 16


def save_shards(
    checkpoints: Checkpoints, epochs: int, facts: LoopFacts, tables: list[AdamTable], owners: Owners, learners: list[Learner],
    best: dict[str, Tensor], worker: Worker,
) -> None:  # fmt: skip
    """Writes a checkpoint after `epochs` epochs; a collective call.

    Args:
        checkpoints: The stage's checkpoints.
        epochs: The number of finished epochs.
        facts: The epoch loop's facts, with the number of steps taken.
        tables: The ID tables of users and items.
        owners: Tells which worker owns a row.
        learners: Replicated weights with their optimizers.
        best: The best replicated weights.
        worker: This worker.
    """
    from safetensors.torch import save

    writer = checkpoints.shard_writer(epochs)
    for table in tables:
        for first, piece in _pieces(table, owners, worker):
            for places in chunks(len(piece), ROWS_A_FILE):
                rows = {name: t.read(first + places) for name, t in table.tables.items()}
                begin = piece.begin + int(places[0])
                writer.add(f"{SIDE_NAMES[table.side]}-{piece.part}-{begin}-{begin + places.numel()}.safetensors", save(rows))
    state = whole_state_stream(learners)
    if worker.is_first:
        checkpoints.add_tensors(writer, "dense", state)
        checkpoints.add_tensors(writer, "best", best.items())
    else:
        for _ in state:  # making a tensor is a collective call
            pass
    files = worker.gather(writer.files)
    if worker.is_first:
        checkpoints.publish(epochs, facts, files)
    worker.barrier()


def load_shards(
    checkpoints: Checkpoints, tables: list[AdamTable], owners: Owners, learners: list[Learner], worker: Worker
) -> tuple[LoopFacts, dict[str, Tensor]] | None:
    """Restores tables and learners from the newest checkpoint that all workers find complete; a collective call.

    Args:
        checkpoints: The stage's checkpoints.
        tables, owners, learners, worker: As in `save_shards`.

    Returns:
        The loop's facts and the best replicated weights; None without a checkpoint.
    """
    own_pieces = [(table, first, piece) for table in tables for first, piece in _pieces(table, owners, worker)]

    def wants(name: str) -> bool:
        is_dense = name.startswith(("dense-", "best-"))
        return is_dense or any(begin < end for begin, end in (_overlap(name, table, piece) for table, _, piece in own_pieces))

    complete = checkpoints.complete(wants)
    of_ranks = worker.gather({worker.rank: set(complete)})
    common = set.intersection(*of_ranks.values())
    if not common:
        return None
    newest = complete[max(common)]
    for table, first, piece in own_pieces:
        for name in newest.files:
            _load_overlap(newest, name, table, first, piece)
    dense, best = checkpoints.read_tensors(newest, "dense"), checkpoints.read_tensors(newest, "best")
    restore_state(learners, _prefixed(dense, learners[0].state_prefix))
    best = {key: t.clone() for key, t in _prefixed(best, learners[0].weight_prefix).items()}
    worker.barrier()
    return newest.facts, best


def _prefixed(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """Returns the tensors with prefixed names, which checkpoints of earlier versions do not have: they hold one learner alone."""
    return tensors if any(name.startswith(prefix) for name in tensors) else with_prefix(prefix, tensors)


def _load_overlap(checkpoint: Complete, name: str, table: AdamTable, first: int, piece: Piece) -> None:
    """Reads the rows that a file holds of a piece into this worker's own rows; the piece's first row is own row `first`."""
    from safetensors.torch import load_file

    begin, end = _overlap(name, table, piece)
    if begin >= end:
        return
    rows, start = load_file(checkpoint.folder / name), int(name.split("-")[2])
    places = torch.arange(first + begin - piece.begin, first + end - piece.begin)
    for key, target in table.tables.items():
        target.write(places, rows[key][begin - start : end - start])


def _pieces(table: AdamTable, owners: Owners, worker: Worker) -> list[tuple[int, Piece]]:
    """Returns this worker's pieces of a table, each with the place of its first row among the own rows."""
    pieces, first = [], 0
    for piece in owners.own(table.side, worker.rank):
        pieces.append((first, piece))
        first += len(piece)
    return pieces


def _overlap(name: str, table: AdamTable, piece: Piece) -> tuple[int, int]:
    """Returns the run of rows that a checkpoint's file and a piece share, [begin, end) in the part; empty where they share no row."""
    words = name.removesuffix(".safetensors").split("-")
    if len(words) != 4 or words[0] != SIDE_NAMES[table.side] or int(words[1]) != piece.part:
        return 0, 0
    return max(int(words[2]), piece.begin), min(int(words[3]), piece.end)
