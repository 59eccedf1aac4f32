"""Defines the interface of linear models that are fitted in closed form, as teachers or as parts of other models."""

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import replace
from typing import ClassVar

import torch
from torch import Tensor

from ..config import TeacherConfig
from ..errors import InputError
from ..histories import Histories, HistoryScores, Similarities, deviations
from ..teacher.base import Teacher
from .adjacency import Interactions, entry_bytes
from .blocks import Block, NodeBlocks
from .config import CONTENT, LinearConfig
from .content_part import ContentPart, added_bytes
from .factors import FactorCache, Scores, scaled_by_user, width_of
from .fit import CatalogCounts, LinearFit, LinearInputs
from .search import Choice, Found, Settings, search

Fitted = tuple[Tensor, Tensor, Histories]  # vectors of users and items, and scores from histories that are added to their products
Score = Callable[[Tensor, Tensor, Histories], float]
RANKS = (64, 128, 256, 512)
NEIGHBOURS = (20, 50, 100, 200, 400, 800)  # similar items that are kept for an item


class LinearTeacher(Teacher, ABC):
    """Defines a model that is fitted in one go: no steps, no epochs, and nothing of `teacher` but `linear` is read.

    A subclass names the settings that it reads, says what is open and computes vectors for given settings. An instance keeps what it
    computed, so that trials share decompositions. `fit` does the rest.

    Args:
        inputs: What the model is fitted on.
        config: The settings.

    Attributes:
        reads: Names of the settings of `LinearConfig` that decide the vectors.
        limits: Names of further ones that the kind reads, which bound what it may use.
        over_shards: Names of the settings that have to be given where the model is fitted over sharded rows, which searches nothing; a kind
            that can be fitted so names both engines, and implements `fit_blocks`.
        adds_content: Whether `content_weight` may add a content score to the kind's own.
        keeps_similarities: Whether the rank may be 0: the scores are then those of `similarities`, without vectors.
    """

    is_fitted: ClassVar[bool] = True
    losses: ClassVar[tuple[str, ...]] = ("bpr", "softmax")  # neither is read; a component of an ensemble takes over what others read
    reads: ClassVar[tuple[str, ...]] = ()
    limits: ClassVar[tuple[str, ...]] = ("trials",)
    adds_content: ClassVar[bool] = True
    over_shards: ClassVar[tuple[str, ...]] = ()
    keeps_similarities: ClassVar[bool] = False

    def __init__(self, inputs: LinearInputs, config: LinearConfig) -> None:
        self.check_settings(config)
        self.inputs, self.config = inputs, config
        self.interactions = Interactions(inputs.graph)
        self.cache = FactorCache(inputs.seed)
        self.content = ContentPart(self.interactions, inputs.features, config) if self.adds_content and config.may_add_content else None

    @classmethod
    def num_columns(cls, config: LinearConfig, counts: CatalogCounts) -> int:
        """Returns the largest number of columns that the kind's own vectors may have; an open rank counts as the largest of the grid."""
        return min(RANKS[-1] if config.rank is None else config.rank, counts.items)

    @classmethod
    def num_columns_in_all(cls, config: LinearConfig, counts: CatalogCounts) -> int:
        """Returns the largest number of columns that the vectors may have, those of an added content score among them."""
        return cls.num_columns(config, counts) + (sum(counts.dims.values()) if cls.adds_content and config.may_add_content else 0)

    @classmethod
    def fitting_bytes_in_all(cls, config: LinearConfig, counts: CatalogCounts) -> int:
        """Returns the bytes that fitting holds at its largest moment beside graph and features, for `plan`."""
        own = cls.fitting_bytes(config, counts)
        if not (cls.adds_content and config.may_add_content):
            return own
        return own + added_bytes(counts.users, counts.items, cls.num_columns(config, counts), counts.dims)

    @classmethod
    def similarity_bytes(cls, config: LinearConfig, counts: CatalogCounts) -> int:
        """Returns the largest number of bytes of the item similarities that the teacher keeps, for `plan`; 0 where it has vectors alone."""
        return entry_bytes(counts.items, config.neighbours or NEIGHBOURS[-1]) if cls.scores_histories(config) else 0

    @classmethod
    def scores_histories(cls, config: LinearConfig) -> bool:
        """Returns whether scores, or a part of them, are sums of `similarities` over a user's history: here with the rank 0."""
        return config.rank == 0

    @classmethod
    def fitting_bytes(cls, config: LinearConfig, counts: CatalogCounts) -> int:
        """Returns the same bytes of the kind's own scores: here of power iterations.

        A row of a user or an item is there as float32 and, while the last products are turned, three times as float64.
        """
        if config.rank == 0:
            return 4 * cls.similarity_bytes(config, counts)
        width = width_of(cls.num_columns(config, counts), counts.items)
        return (counts.users + counts.items) * width * (2 * 4 + 3 * 8)

    @classmethod
    def num_layers(cls, config: TeacherConfig) -> int:
        return 0

    @classmethod
    def why_full(cls, config: TeacherConfig) -> str | None:
        if "sampled" in cls.engines and cls.scores_histories(config.linear):
            return f"teacher.kind={config.kind} with {_what_keeps(config.linear)} is trained by the full engine alone"
        still_open = [name for name in cls.over_shards if getattr(config.linear, name) is None]
        if "sampled" in cls.engines and config.linear.may_add_content:
            return f"teacher.kind={config.kind} with teacher.linear.content_weight other than 0 is trained by the full engine alone"
        if "sampled" in cls.engines and still_open:
            names = ", ".join(f"teacher.linear.{name}" for name in still_open)
            return f"teacher.kind={config.kind}, where {names} are not given but chosen, is trained by the full engine alone"
        return super().why_full(config)

    @classmethod
    def given_over_shards(cls, config: LinearConfig) -> Settings:
        """Returns the settings that `over_shards` names, by name; all of them have a value where `why_full` returns None."""
        return {name: getattr(config, name) for name in cls.over_shards}

    @classmethod
    def fit_blocks(cls, blocks: NodeBlocks, config: LinearConfig, seed: int) -> tuple[Block, Block]:
        """Fits the model over rows that several workers hold; collective. What `why_full` names is not asked for.

        Args:
            blocks: Makes and changes blocks of rows.
            config: The settings.
            seed: Seed of random starts.

        Returns:
            Blocks of users and of items, whose dot products are the scores that `fit` computes in one process, up to rounding.
        """
        raise NotImplementedError(f"{cls.__name__} is fitted by the full engine alone")

    @classmethod
    def block_columns(cls, config: LinearConfig, counts: CatalogCounts) -> tuple[int, int]:
        """Returns how many columns of users' and of items' blocks `fit_blocks` makes, for `plan`."""
        raise NotImplementedError(f"{cls.__name__} is fitted by the full engine alone")

    @classmethod
    def learns_from_features(cls, config: TeacherConfig) -> bool:
        return cls.reads_features or (cls.adds_content and config.linear.may_add_content)

    @classmethod
    def linear_settings(cls) -> tuple[str, ...]:
        return cls.reads + (CONTENT if cls.adds_content else ()) + cls.limits

    @classmethod
    def check_settings(cls, config: LinearConfig) -> None:
        """Raises InputError where settings that the kind reads have no meaning together; settings call it before any work.

        A kind with settings of its own to check calls this one too.
        """
        if config.rank == 0 and not cls.keeps_similarities:
            raise InputError(
                "teacher.linear.rank=0 keeps scores as sparse similarities of items, which item_knn, rp3beta and polynomial can; set a "
                "rank of at least 1 (spectral keeps similarities beside its vectors with filter=neighbourhood and neighbours), or another "
                "teacher.kind"
            )
        if cls.scores_histories(config) and cls.adds_content and config.may_add_content:
            raise InputError(
                f"{_what_keeps(config)} keeps similarities of items, and a content score is added to vectors alone; set "
                "teacher.linear.content_weight=0, and name the kind content among the components of teacher.kind=ensemble beside this one"
            )
        lost = [name for name in CONTENT[1:] if getattr(config, name) is not None]
        if cls.adds_content and lost and not config.may_add_content:
            raise InputError(
                f"teacher.linear.{lost[0]}={getattr(config, lost[0])} has no meaning with teacher.linear.content_weight=0, which adds no "
                "content score; set a weight above 0, or null to have it chosen, or leave it out"
            )

    @abstractmethod
    def choices(self) -> dict[str, Choice]:
        """Returns the settings that may be chosen, by name, in the order in which they are searched."""

    @abstractmethod
    def vectors(self, settings: Settings) -> tuple[Tensor, Tensor]:
        """Computes vectors of users [num_users, r] and items [num_items, r], up to a factor for each user, from all settings by name."""

    def similarities(self, settings: Settings) -> Similarities:
        """Computes the matrix of items by items with which the kind scores histories, from all settings by name."""
        raise NotImplementedError(f"{type(self).__name__} has vectors alone")

    def vectors_beside(self, settings: Settings) -> tuple[Tensor, Tensor]:
        """Computes vectors of users [num_users, r] and items [num_items, r] whose dot products are added to the sums of `similarities`.

        Here there are none, r = 0.
        """
        graph, device = self.inputs.graph, self.inputs.graph.user_weights.device
        return torch.zeros(graph.num_users, 0, device=device), torch.zeros(graph.num_items, 0, device=device)

    def given(self) -> Settings:
        """Returns the settings that have a value, by name, as `choices` names them."""
        values = {name: getattr(self.config, name) for name in self.reads}
        return {name: value for name, value in values.items() if value is not None}

    def read(self, settings: Settings) -> Settings:
        """Returns those of the settings that have a meaning together."""
        return dict(settings)

    def settled(self, settings: Settings) -> Settings:
        """Returns settings under the names of `LinearConfig`'s fields: given as its values, they fit the same model again."""
        return settings

    @classmethod
    def fit(cls, inputs: LinearInputs, config: LinearConfig, score: Score | None = None) -> LinearFit:
        """Fits the model, and chooses open settings on validation.

        The vectors are a function of inputs and settings: the same settings, given in place of chosen, give the same vectors.

        Args:
            inputs: What the model is fitted on.
            config: The settings; those that are None are open.
            score: Returns the validation metric of vectors of users and items and of scores from histories, higher is better; None where
                there is no validation split, and the open settings have their start values then.

        Raises:
            InputError: the inputs do not fit the settings, or need more memory than they allow.
        """
        model = cls(inputs, config)
        content = model.content
        given = {**model.given(), **(content.given() if content is not None else {})}
        # The content's first: such a trial costs little, and with the kind's own first the modalities' weights got none of 32 trials.
        choices = {**(content.choices() if content is not None else {}), **model.choices()}
        choices = {name: choice for name, choice in choices.items() if name not in given}
        if score is None or not choices:
            found = Found(model._read({**given, **{name: choice.start for name, choice in choices.items()}}), None, 0)
        else:
            found = search(choices, given, lambda settings: score(*model._ranking(settings)), config.trials, model._read)
            model = cls(inputs, config)  # without what the trials left: the result is a function of the settings alone
        users, items, histories = model._finished(found.settings)
        settled = model.settled(found.settings) if content is None else content.settled(model.settled(found.settings))
        return LinearFit(users, items, settled, tuple(choices) if score is not None else (), found.value, found.trials, histories)

    def _read(self, settings: Settings) -> Settings:
        """Returns those of the settings that have a meaning together, of the kind's own and of the content."""
        if self.content is None:
            return self.read(settings)
        own, of_content = self.content.split(settings)
        return {**self.read(own), **of_content}

    @torch.no_grad()
    def _finished(self, settings: Settings) -> Fitted:
        """Returns what the model scores with, where a user's scores have the standard deviation 1."""
        users, items, histories = self._ranking(settings)
        if not histories:  # vectors have it already
            return users, items, histories
        spread = deviations(users, items, histories)
        factors = torch.where(spread > 0, 1 / spread, 1.0)
        scaled = (factors[:, None] * users).float()
        return scaled, items, tuple(replace(part, weights=(factors * part.weights).float()) for part in histories)

    @torch.no_grad()
    def _ranking(self, settings: Settings) -> Fitted:
        """Returns the same up to a factor for each user where scores come from histories: enough to rank."""
        if self.scores_histories(self.config):
            graph = self.inputs.graph
            ones = torch.ones(graph.num_users, device=graph.user_weights.device)
            return *self.vectors_beside(settings), (HistoryScores(ones, graph.users, self.similarities(settings)),)
        if self.content is not None:
            return *self.content.added_to(self._own, settings), ()
        return *self._own(settings), ()

    def _own(self, settings: Settings) -> tuple[Tensor, Tensor]:
        users, items = self.vectors(settings)
        return scaled_by_user(users, items), items.float().contiguous()

    def best_vectors(self, key: object, scores: Scores, rank: int, exact: Callable[[], tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
        """Returns the vectors of the best approximation of a rank, or exact ones where the rank is at least the number of items.

        Args:
            key: Stands for the scores.
            scores: The matrix of scores.
            rank: Columns of the vectors.
            exact: Computes vectors [num_users, num_items] and [num_items, num_items] whose dot products are the scores.
        """
        if rank >= scores.num_items:
            return exact()
        return self.cache.of(key, scores, rank, self.interactions.like).vectors(rank)


def _what_keeps(config: LinearConfig) -> str:
    """Returns the setting with which a kind keeps similarities of items, as messages name it."""
    return "teacher.linear.rank=0" if config.rank == 0 else f"teacher.linear.neighbours={config.neighbours}"


def rank_choice(num_items: int, start: int = 128) -> Choice:
    """Returns the grid of ranks below half the number of items; at least the smallest rank stays."""
    values = tuple(rank for rank in RANKS if rank <= max(num_items // 2, RANKS[0]))
    return Choice(min(start, values[-1]), values)


def exponent_choices() -> dict[str, Choice]:
    """Returns the exponents of a filter of the item graph: of items and users in the graph, and of items in the scores."""
    of_items = Choice(0.5, (0.0, 0.25, 0.4, 0.5, 0.65))
    return {"item_exponent": of_items, "user_exponent": Choice(0.5, (0.0, 0.25, 0.5, 1.0)), "output_exponent": of_items}


def chained(first: Scores, second: Scores) -> Scores:
    """Returns the product of two matrices, of which the second is one of items by items."""
    return Scores(second.num_items, lambda x: first.to_users(second.to_users(x)), lambda y: second.to_items(first.to_items(y)))
