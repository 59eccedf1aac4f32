"""The facts of a catalog that settings can be derived from, measured on train and validation before anything is trained."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from ...core.graph import Csr
from ...core.storage import JsonObject
from ...graph_store.dataset import Dataset
from ..settings import build
from .degrees import BusyUsers, Spread, is_busy, spread_of
from .modalities import ModalityFacts, modality_facts, unit_rows
from .rankings import HeldOut, Judged, Ranking, error_bounds, held_out_items, judge, rankings_of
from .scorers import Overlaps, Scorer, by_co_occurrence, by_content, by_popularity, by_vectors
from .spectrum import Spectrum, spectrum_of

# Names of rankings. Those of busy users and of the others are there only where there are busy users.
POPULARITY, POPULARITY_BUSY, POPULARITY_OTHERS = "popularity", "popularity_busy", "popularity_others"
CO_OCCURRENCE, CO_OCCURRENCE_OTHERS, CO_OCCURRENCE_BALANCED = "co_occurrence", "co_occurrence_others", "co_occurrence_balanced"
SPECTRAL = "spectral"
GROUPS = ((0, 0), (1, 5), (6, 15), (16, 40), (41, 100), (101, None))  # train interactions of an item, from and to


def content(modality: str, whiten: bool) -> str:
    """The name of the ranking by a modality's cosines; no modality's name has a colon."""
    return f"{'whitened' if whiten else 'content'}:{modality}"


@dataclass(frozen=True)
class ItemGroup:
    """Validation items by how many train interactions with users but the busy ones they have.

    Attributes:
        low, high: From and to; None: without an upper end.
        share: Share of the validation interactions.
        recall: Share of these that the best co-occurrence counts find.
    """

    low: int
    high: int | None
    share: float
    recall: float

    @property
    def title(self) -> str:
        """The group in a few characters."""
        if self.high is None:
            return f"over {self.low - 1}"
        return str(self.low) if self.low == self.high else f"{self.low} to {self.high}"


@dataclass(frozen=True)
class ValidationFacts:
    """What the validation split says; all figures are over the ranked users.

    Attributes:
        k: Length of the lists, 20 or the number of items where it is smaller.
        num_users: Users with validation items.
        num_ranked: Those of them that are ranked: all, or a seeded sample.
        chance: Recall@K of lists in random order.
        median_train_items: Median of their train items.
        cold_share: Share of their validation items that have no train interaction.
        error_low, error_high: Standard errors that a Recall@K of the size of the best ranking's can have (`rankings.error_bounds`).
        rankings: By the names above and `content(modality, whiten)`.
        groups: Where the best co-occurrence counts find what they find.
    """

    k: int
    num_users: int
    num_ranked: int
    chance: float
    median_train_items: int
    cold_share: float
    error_low: float
    error_high: float
    rankings: dict[str, Ranking]
    groups: tuple[ItemGroup, ...]

    @property
    def best(self) -> str:
        """The name of the ranking with the largest recall."""
        return max(self.rankings, key=lambda name: self.rankings[name].recall)


@dataclass(frozen=True)
class CatalogFacts:
    """What a catalog is like.

    Attributes:
        num_users, num_items: Of the catalog, those without interactions among them.
        num_interactions: By split, train and validation.
        density: Train interactions / (num_users · num_items).
        users_without_train, items_without_train: How many have no train interaction.
        users, items: How the train interactions spread over them.
        busy: Users with more than ten times the mean of train interactions.
        spectrum: Of the normalised train graph.
        modalities: By name.
        validation: None without a validation split.
    """

    num_users: int
    num_items: int
    num_interactions: dict[str, int]
    density: float
    users_without_train: int
    items_without_train: int
    users: Spread
    items: Spread
    busy: BusyUsers
    spectrum: Spectrum
    modalities: dict[str, ModalityFacts]
    validation: ValidationFacts | None

    @staticmethod
    def from_json(values: JsonObject) -> "CatalogFacts":
        """Reads what `dataclasses.asdict` made and JSON kept.

        Raises:
            InputError: a value is missing or of a wrong type.
        """
        return build(CatalogFacts, values)


def catalog_facts(dataset: Dataset, seed: int = 0, say: Callable[[str], None] = lambda line: None) -> CatalogFacts:
    """Measures the facts of a prepared catalog; the test split is never read.

    Memory is bounded by the interactions, by some numbers for every user and item, and by blocks of users; features lie in scratch files.

    Args:
        dataset: The catalog.
        seed: Seed of the sample of validation users, where there are too many to rank all, and of the spectrum's iterations.
        say: Takes a line about what is being done.
    """
    dataset = dataset.without("test")
    train = dataset.csr("train")
    by_user, by_item = train.degrees, torch.bincount(train.columns, minlength=dataset.num_items)
    busy = is_busy(by_user)
    say("singular values of the train graph")
    spectrum, *vectors = spectrum_of(train, seed)
    modalities, scorers = {}, _scorers(train, busy)
    scorers[SPECTRAL] = by_vectors(*vectors)
    has_validation = dataset.has_split("validation")
    for modality in dataset.modalities:
        say(f"features: {modality}")
        modalities[modality], moments = modality_facts(dataset, modality)
        if has_validation:
            for whiten in (False, True):
                scorers[content(modality, whiten)] = by_content(train, unit_rows(dataset, modality, moments, whiten))
    validation = None
    if has_validation:
        held_out = held_out_items(dataset, train, seed)
        say(f"{len(scorers)} rankings of {held_out.users.numel():,} users")
        validation = _validation_facts(held_out, judge(held_out, scorers), _counts(train, ~busy))
    return CatalogFacts(
        dataset.num_users,
        dataset.num_items,
        {split: dataset.manifest["num_interactions"][split] for split in ("train", "validation")},
        train.columns.numel() / (dataset.num_users * dataset.num_items),
        int((by_user == 0).sum()),
        int((by_item == 0).sum()),
        spread_of(by_user),
        spread_of(by_item),
        BusyUsers(int(busy.sum()), int(by_user[busy].sum()) / train.columns.numel()),
        spectrum,
        modalities,
        validation,
    )


def _counts(train: Csr, users: Tensor) -> Tensor:
    """Train interactions of every item with some users, int64 [num_items], from bool [num_users]."""
    return torch.bincount(train.columns[users[train.rows]], minlength=train.num_columns)


def _scorers(train: Csr, busy: Tensor) -> dict[str, Scorer]:
    """The scores by interactions alone."""
    overlaps, every = Overlaps(train), torch.ones(train.num_rows)
    balanced = torch.where(train.degrees > 0, 1 / train.degrees.clamp(min=1).float(), 0.0)
    scorers = {
        POPULARITY: by_popularity(train, every),
        CO_OCCURRENCE: by_co_occurrence(overlaps, every),
        CO_OCCURRENCE_BALANCED: by_co_occurrence(overlaps, balanced),
    }
    if busy.any():
        scorers[POPULARITY_BUSY] = by_popularity(train, busy.float())
        scorers[POPULARITY_OTHERS] = by_popularity(train, (~busy).float())
        scorers[CO_OCCURRENCE_OTHERS] = by_co_occurrence(overlaps, (~busy).float())
    return scorers


def _validation_facts(held_out: HeldOut, judged: dict[str, Judged], of_others: Tensor) -> ValidationFacts:
    """Sums up the rankings; `of_others`: int64 [num_items], an item's train interactions with users but the busy ones."""
    rankings = rankings_of(judged, held_out)
    low, high = error_bounds(max(ranking.recall for ranking in rankings.values()), held_out.wanted.degrees)
    counting = [name for name in (CO_OCCURRENCE, CO_OCCURRENCE_OTHERS, CO_OCCURRENCE_BALANCED) if name in rankings]
    is_hit = judged[max(counting, key=lambda name: rankings[name].recall)].is_hit
    held, groups = of_others[held_out.wanted.columns], []
    for least, most in GROUPS:
        is_in = (held >= least) & (held <= (most if most is not None else held.max()))
        if is_in.any():
            groups.append(ItemGroup(least, most, float(is_in.double().mean()), float(is_hit[is_in].double().mean())))
    return ValidationFacts(
        held_out.k,
        held_out.num_users,
        held_out.users.numel(),
        held_out.chance,
        int(held_out.train.degrees.median()),
        float(held_out.is_cold[held_out.wanted.columns].double().mean()),
        low,
        high,
        rankings,
        tuple(groups),
    )
