"""Items that nobody has touched: the map that the bundle ships, and how it ranks the cold items of a dataset that holds some out."""

from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from ...core.cold_ranking import ColdSplit, content_metrics, random_metrics, vector_metrics
from ...core.config import EvaluationConfig
from ...core.new_items import ItemMap, fit_item_map
from ...core.new_items.draws import STREAM_FITTED, order_by_draw
from ...core.new_items.encoding import RawRows
from ...core.sides import ITEMS
from ...core.storage import JsonObject
from ...distributed.messages import StoredScores
from ...graph_store.catalog import COLD
from ...graph_store.dataset import Dataset
from .models import TrainedModel

FIT_BYTES = 512 * 2**20  # of feature rows that a map is fitted on, or applied to at a time, as float32


def fit_new_items(dataset: Dataset, student: TrainedModel, seed: int) -> ItemMap | None:
    """Fits the map from features to the student's item vectors on the items with train interactions and features.

    Where their rows are more than `FIT_BYTES`, a seeded draw of them is fitted on. Nothing but the train split is read.

    Args:
        dataset: The run's.
        student: The trained student.
        seed: Of the draw and of the folds.

    Returns:
        The map; None where the dataset has no features, or too few items with both to choose a map on.
    """
    if not dataset.modalities:
        return None
    train = dataset.rows("train")
    has_features = np.zeros(dataset.num_items, bool)
    for modality in dataset.modalities:
        has_features |= _present(dataset, modality)
    degrees = dataset.degrees("train", ITEMS)
    rows = ((degrees > 0) & torch.from_numpy(has_features)).nonzero().flatten()
    most = _most_rows(dataset)
    if rows.numel() > most:
        rows = order_by_draw(STREAM_FITTED, seed, rows)[:most].sort().values
    features = {modality: features_of(dataset, modality, rows) for modality in dataset.modalities}
    return fit_item_map(student.users, student.items, train, features, rows, seed)


@dataclass(frozen=True)
class BundleItems:
    """Holds the item vectors that the bundle ships.

    Attributes:
        scores: The student's final scores with these item vectors: its own, and those that changed.
        num_untouched: Items of the catalog without train interactions.
    """

    scores: StoredScores
    num_untouched: int

    @property
    def num_mapped(self) -> int:
        """Returns the number of untouched items that have the map's vectors in place of the student's own."""
        return 0 if self.scores.changed is None else self.scores.changed[0].numel()


def bundle_items(dataset: Dataset, student: TrainedModel, item_map: ItemMap | None) -> BundleItems:
    """Gives items without train interactions the map's vectors, where they have features; the rows of all others keep every bit.

    Args:
        dataset: The run's.
        student: The trained student.
        item_map: Its map; None: all items keep the student's own vectors.
    """
    untouched = (dataset.degrees("train", ITEMS) == 0).nonzero().flatten()
    if item_map is None or not untouched.numel():
        return BundleItems(student.stored, untouched.numel())
    mapped, of_map = [], []
    for items in untouched.split(_most_rows(dataset)):
        features = {modality: features_of(dataset, modality, items) for modality in item_map.encodings}
        has_features = torch.stack([present for _, present in features.values()], 1).any(1)
        mapped.append(items[has_features])
        of_map.append(item_map.vectors(features)[has_features])
    return BundleItems(replace(student.stored, changed=(torch.cat(mapped), torch.cat(of_map))), untouched.numel())


def _most_rows(dataset: Dataset) -> int:
    """Returns the number of items whose feature rows are `FIT_BYTES`."""
    return max(1, FIT_BYTES // (4 * sum(info.dim for info in dataset.modalities.values())))


def _present(dataset: Dataset, modality: str) -> np.ndarray:
    if not dataset.modalities[modality].missing_rows:
        return np.ones(dataset.num_items, bool)
    return np.concatenate([present for _, _, present in dataset.feature_chunks(modality)])


def features_of(dataset: Dataset, modality: str, items: Tensor) -> RawRows:
    """Reads a modality's rows of some items, ascending, a chunk of the catalog at a time."""
    info, filled = dataset.modalities[modality], 0
    rows = torch.empty(items.numel(), info.dim, dtype=getattr(torch, info.dtype))
    presence = torch.empty(items.numel(), dtype=torch.bool)
    for start, chunk, present in dataset.feature_chunks(modality):
        here = items[(items >= start) & (items < start + len(chunk))] - start
        place = slice(filled, filled := filled + here.numel())
        rows[place], presence[place] = torch.from_numpy(chunk)[here], torch.from_numpy(present)[here]
    return rows, presence


def cold_results(
    dataset: Dataset, config: EvaluationConfig, student: TrainedModel, teacher: TrainedModel | None, item_map: ItemMap | None
) -> JsonObject | None:
    """Measures how cold items are ranked among themselves; None where the dataset holds none out.

    Args:
        dataset: The run's.
        config: Cut-offs and metrics.
        student: The trained student.
        teacher: Its teacher, or None.
        item_map: The map that is fitted for the student's bundle, or None.

    Returns:
        `num_items`, `num_users` and by row name the metrics in `rows`: `map`, `teacher` where its features reach cold items,
        `content <modality>` with its whitened form and their sum over modalities, and `random`.
    """
    if not dataset.has_split(COLD):
        return None
    split = ColdSplit.of(dataset.csr(COLD), dataset.csr("train"))
    rows, cutoffs, further = {}, config.cutoffs, config.metrics
    if item_map is not None:
        mapped = item_map.vectors({m: features_of(dataset, m, split.items) for m in item_map.encodings})
        rows["map"] = vector_metrics(split, student.users, mapped, cutoffs, further)
    untouched = teacher.untouched(split.items) if teacher is not None else None
    if teacher is not None and untouched is not None:
        rows["teacher"] = vector_metrics(split, teacher.users, untouched, cutoffs, further)
    everything = torch.arange(dataset.num_items)
    features = {m: features_of(dataset, m, everything) for m in dataset.modalities}
    chosen = {m: {m: raw} for m, raw in features.items()} | ({"all modalities": features} if len(features) > 1 else {})
    for name, some in chosen.items():
        for whiten in (False, True):
            label = f"content {name}, whitened" if whiten else f"content {name}"
            rows[label] = content_metrics(split, some, whiten, cutoffs, further)
    rows["random"] = random_metrics(split, cutoffs)
    return {"num_items": split.items.numel(), "num_users": split.users.numel(), "rows": rows}
