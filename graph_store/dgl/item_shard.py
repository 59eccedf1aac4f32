"""Features of a worker's own items for a worker that is no DGL client: read from this host's part, or sent by the part's server actor."""

from collections.abc import Sequence

import numpy as np
import ray
import torch
from torch import Tensor

from ...core.artifact import MANIFEST
from ...core.storage import read_json
from ..feature_rows import FeatureRows, map_features
from ..own_features import ItemShard
from ..ownership import pieces_of_parts
from ..session import Session
from .servers import CALL_SECONDS
from .session_files import local_folder


def read_item_shard(session: Session, original_items: Tensor, rank: int, worker_nodes: Sequence[str]) -> ItemShard:
    """Reads the items that a rank owns (ownership.py), with their features.

    Features are memory-mapped where the part lies on the rank's host; else its server actor sends them once.

    Args:
        session: The servers.
        original_items: int64 [num_items], the dataset index of every item in the parts' order, as the client returns it.
        rank: This worker.
        worker_nodes: Host of every rank, as the session names hosts.
    """
    folder = local_folder(session)
    manifest = read_json(str(folder / MANIFEST))
    modalities = manifest["modalities"]
    features: dict[str, list[np.ndarray]] = {m: [] for m in modalities}
    present: dict[str, list[Tensor]] = {m: [] for m in modalities}
    rows, firsts = [], [first for first, _ in manifest["part_items"]]
    for piece in pieces_of_parts([last - first for first, last in manifest["part_items"]], session.part_nodes, worker_nodes):
        if piece.rank != rank:
            continue
        rows.append(original_items[firsts[piece.part] + piece.begin : firsts[piece.part] + piece.end])
        for modality in modalities:
            if session.part_nodes[piece.part] == worker_nodes[rank]:
                own: FeatureRows = map_features(folder, manifest, piece.part, modality)[piece.begin : piece.end]
            else:
                request = session.servers[piece.part].feature_rows.remote(modality, piece.begin, piece.end)
                own = ray.get(request, timeout=CALL_SECONDS)
            features[modality].append(own.values())
            present[modality].append(torch.from_numpy(np.array(own.present)))
    if not rows:
        empty = {m: np.zeros((0, info["dim"]), np.float32) for m, info in modalities.items()}
        return ItemShard(torch.zeros(0, dtype=torch.int64), empty, {m: torch.zeros(0, dtype=torch.bool) for m in empty})
    joined = {m: runs[0] if len(runs) == 1 else np.concatenate(runs) for m, runs in features.items()}
    return ItemShard(torch.cat(rows), joined, {m: torch.cat(runs) for m, runs in present.items()})
