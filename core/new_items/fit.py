"""Fits the map from item features to a student's item vectors, and chooses its strengths (docs/method.md 11)."""

import itertools
from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ..features import FeatureMoments, Standardisation, chunk_rows, principal_axes
from ..graph import Csr
from .calibration import Calibration, calibrate
from .encoding import Encoding, RawRows
from .item_map import ItemMap
from .pseudo_cold import NUM_FOLDS, Fold, make_folds
from .ridge import RidgeSums

PENALTY = 3e-3  # where the search for the ridge's strength begins
FACTORS = (3.0, 1 / 3)  # that a strength, or a modality's scale, is tried with
STEPS = 8  # of the search in one direction
PASSES = 2  # over the modalities' scales
MOST_AXES = 256  # of a modality, in the fit: wider rows are turned onto their leading principal axes
MOST_WHITENED = 1024  # columns of a modality; the bundle has the matrix, which would outweigh a student
LEAST_ITEMS = 4 * NUM_FOLDS  # to fit on; fewer tell nothing
MOST_MODALITIES = 4  # for which every set has a matrix
MOST_SETS = 16  # of a catalog with more modalities, beside the whole, the single ones, and those that lack one


@dataclass(frozen=True)
class Inputs:
    """Holds encoded rows of the fitted items with the sums of every fold.

    Attributes:
        encodings: By modality.
        columns: The columns of `z` by modality.
        axes: float64 [d_m, MOST_AXES] of each modality whose rows are wider.
        z: float32 [n, D], zeros where an item lacks a modality.
        targets: float32 [n, d], the student's vectors.
        total: The sums over all rows.
        folds: The folds.
        without: The sums over all rows but those of the fold, for each fold.
    """

    encodings: dict[str, Encoding]
    columns: dict[str, Tensor]
    axes: dict[str, Tensor]
    z: Tensor
    targets: Tensor
    total: RidgeSums
    folds: list[Fold]
    without: list[RidgeSums]


@dataclass(frozen=True)
class Choice:
    """Holds what is chosen on folds: the ridge's strength, a scale for each modality, and the recall that they reach."""

    penalty: float
    scales: dict[str, float]
    recall: float = -1.0

    def expanded(self, inputs: Inputs) -> Tensor:
        """Returns the scale of every column of z, float64 [D]."""
        return torch.cat([torch.full((columns.numel(),), self.scales[m], dtype=torch.float64) for m, columns in inputs.columns.items()])


def fit_item_map(users: Tensor, items: Tensor, train: Csr, features: Mapping[str, RawRows], rows: Tensor, seed: int = 0) -> ItemMap | None:
    """Fits the map by weighted ridge regression, with whitening, strength and scales chosen on folds of the fitted items.

    Args:
        users, items: The student's final vectors, float32 [num_users, d] and [num_items, d].
        train: Every user's train items; may be memory-mapped, as the vectors.
        features: Raw rows [n, d_m] of the fitted items with their presence, by modality.
        rows: int64 [n], the fitted items: each has a train interaction, and a row in at least one modality.
        seed: Of the folds.

    Returns:
        The map; None where there are too few items or users to choose it on.
    """
    features = {m: raw for m, raw in features.items() if raw[1].any()}
    folds = make_folds(items, train, rows, seed) if rows.numel() >= LEAST_ITEMS and features else []
    if not folds:
        return None
    degrees = torch.zeros(train.num_columns, dtype=torch.int64)
    for block in train.blocks():
        degrees += torch.bincount(block.columns, minlength=train.num_columns)
    degrees = degrees[rows]
    best: tuple[Choice, bool] | None = None
    is_wide = any(rows.shape[1] > MOST_WHITENED for rows, _ in features.values())
    for whiten in (False,) if is_wide else (False, True):
        choice = _first_choice(_inputs(items[rows], features, degrees, folds, whiten))  # of one encoding in memory at a time
        if best is None or choice.recall > best[0].recall:
            best = choice, whiten
    assert best is not None
    choice, whiten = best
    inputs = _inputs(items[rows], features, degrees, folds, whiten)
    choice = _choose_scales(inputs, choice)
    trained = train.degrees.nonzero().flatten()
    seen = _Among(train, trained, rows)
    calibration = calibrate(users, inputs.targets, seen, degrees, _predicted_by_others(inputs, choice), seed, trained)
    facts = {
        "whiten": whiten,
        "penalty": choice.penalty,
        "scales": choice.scales,
        "recall": choice.recall,
        "list_length": min(fold.list_length for fold in folds),
        "num_items": rows.numel(),
        "factor": calibration.factor,
        "level": calibration.level,
        "share_of_places": calibration.share_of_places,
    }
    patterns = torch.stack([present for _, present in features.values()], 1)
    return _whole_map(inputs, choice, calibration, _sets(list(features), patterns), facts)


@dataclass(frozen=True)
class _Among:
    """Gives some users' train items among some items, by their place among these; a `Rows`.

    Attributes:
        train: Every user's train items.
        users: int64 [m], the users.
        items: int64 [n] ascending.
    """

    train: Csr
    users: Tensor
    items: Tensor

    def select(self, rows: Tensor) -> Csr:
        """See `Rows`."""
        place_of = torch.full((self.train.num_columns,), -1)
        place_of[self.items] = torch.arange(self.items.numel())
        train = self.train.select(self.users[rows])
        place = place_of[train.columns]
        return Csr.from_pairs(train.rows[place >= 0], place[place >= 0], train.num_rows, self.items.numel())


def _inputs(targets: Tensor, features: Mapping[str, RawRows], degrees: Tensor, folds: list[Fold], whiten: bool) -> Inputs:
    encodings = {m: Encoding.of(raw, whiten) for m, raw in features.items()}
    encoded, axes, columns, first = [], {}, {}, 0
    for m, raw in features.items():
        z = encodings[m].encode(raw)
        if z.shape[1] > MOST_AXES:
            plain = Standardisation(encodings[m].centre * 0, torch.ones_like(encodings[m].centre))
            axes[m] = principal_axes(FeatureMoments.of(z, raw[1]), plain, MOST_AXES)
            z = z @ axes[m].float()
        encoded.append(z)
        columns[m] = torch.arange(first, first := first + z.shape[1])
    z, weights = torch.cat(encoded, 1), torch.log1p(degrees.double())
    total = RidgeSums.of(z, targets, weights)
    without = [total - RidgeSums.of(z[fold.places], targets[fold.places], weights[fold.places]) for fold in folds]
    return Inputs(encodings, columns, axes, z, targets, total, folds, without)


def _recall(inputs: Inputs, choice: Choice) -> Choice:
    """Returns the choice with its mean recall over the users of all folds."""
    scales = choice.expanded(inputs)
    values = [
        fold.recall((inputs.z[fold.places] @ sums.solve(choice.penalty, scales).float()) + sums.mean_target().float())
        for fold, sums in zip(inputs.folds, inputs.without)
    ]
    return replace(choice, recall=float(torch.cat(values).mean()))


def _first_choice(inputs: Inputs) -> Choice:
    """Returns the best strength where all modalities have the same scale."""
    return _choose_penalty(inputs, _recall(inputs, Choice(PENALTY, dict.fromkeys(inputs.columns, 1.0))))


def _choose_penalty(inputs: Inputs, choice: Choice) -> Choice:
    """Walks from a strength to a better one as long as there is one, first to stronger ones."""
    for factor in FACTORS:
        before = choice
        for _ in range(STEPS):
            other = _recall(inputs, replace(choice, penalty=choice.penalty * factor))
            if other.recall <= choice.recall:
                break
            choice = other
        if choice is not before:
            break
    return choice


def _choose_scales(inputs: Inputs, choice: Choice) -> Choice:
    """Tries other scales, a modality at a time, and after each pass other strengths; keeps what raises the recall.

    Of equally good choices the one that was there first is kept.
    """
    if len(inputs.columns) == 1:
        return choice
    for _ in range(PASSES):
        before = choice
        for m in inputs.columns:
            tried = [replace(choice, scales={**choice.scales, m: choice.scales[m] * factor}) for factor in FACTORS]
            choice = max([choice, *(_recall(inputs, other) for other in tried)], key=lambda c: c.recall)
        choice = _choose_penalty(inputs, choice)
        if choice is before:
            break
    return choice


def _predicted_by_others(inputs: Inputs, choice: Choice) -> Tensor:
    """Predicts every item's vector from the items of other folds, float64 [n, d]; an item of a fold without users from all items."""
    scales = choice.expanded(inputs)
    out = torch.empty(inputs.targets.shape, dtype=torch.float64)
    everything = torch.arange(len(out)), inputs.total
    for places, sums in (everything, *((fold.places, sums) for fold, sums in zip(inputs.folds, inputs.without))):
        solved, mean = sums.solve(choice.penalty, scales), sums.mean_target()
        for here in places.split(chunk_rows(inputs.z.shape[1])):
            out[here] = inputs.z[here].double() @ solved + mean
    return out


def _whole_map(inputs: Inputs, choice: Choice, calibration: Calibration, sets: list[tuple[str, ...]], facts: dict) -> ItemMap:
    """Fits a matrix for each set of modalities on all items, and calibrates it."""
    weights = {}
    for modalities in sets:
        columns = torch.cat([inputs.columns[m] for m in modalities])
        solved = inputs.total.solve(choice.penalty, choice.expanded(inputs), columns)
        blocks = solved.split([inputs.columns[m].numel() for m in modalities])
        whole = torch.cat([inputs.axes[m] @ block if m in inputs.axes else block for m, block in zip(modalities, blocks)])
        weights[modalities] = (calibration.factor * whole).float()
    bias = calibration.factor * inputs.total.mean_target() + calibration.shift
    return ItemMap(inputs.encodings, weights, bias.float(), facts)


def _sets(modalities: list[str], patterns: Tensor) -> list[tuple[str, ...]]:
    """Lists the sets of modalities that get a matrix: all of them for up to `MOST_MODALITIES` modalities.

    For more: the whole set, the sets that lack one modality, the single ones, and the `MOST_SETS` commonest sets among the fitted items.

    Args:
        modalities: All modalities.
        patterns: bool [n, |M|], which of them the fitted items have.
    """
    count = len(modalities)
    if count <= MOST_MODALITIES:
        sizes: list[int] = list(range(count, 0, -1))
        common: list[tuple[str, ...]] = []
    else:
        sizes = [count, count - 1, 1]
        found, numbers = torch.unique(patterns, dim=0, return_counts=True)
        ranked = found[torch.argsort(numbers, descending=True, stable=True)][:MOST_SETS].tolist()
        common = [tuple(itertools.compress(modalities, pattern)) for pattern in ranked]
    sets = [chosen for size in sizes for chosen in itertools.combinations(modalities, size)]
    return list(dict.fromkeys([*sets, *common]))
