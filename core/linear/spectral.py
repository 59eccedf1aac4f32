"""Defines the spectral filter: histories projected onto leading singular vectors of the weighted interactions (GF-CF's family)."""

from typing import ClassVar

import torch
from torch import Tensor

from ..config import TeacherConfig
from ..errors import InputError
from ..graph import degree_power
from ..histories import Similarities
from ..sides import ITEMS, USERS
from .adjacency import list_bytes
from .base import LinearTeacher, exponent_choices, rank_choice
from .blocks import Block, NodeBlocks, leading_blocks, standardise_users, weighted, working_blocks
from .config import LinearConfig
from .factors import Factors, Scores, leading_factors, width_of
from .fit import CatalogCounts, LinearInputs
from .lists import SharedLists, graph_rows, without_diagonal
from .search import Choice, Settings

# The singular vectors are the model here, and those of TikTok lie close together around the 256th: with 8 iterations and 32 columns beside
# the rank its Recall@20 on validation was between .097 and .104, by the seed; with 16 and half as many columns as the rank .101 to .103.
ITERATIONS = 16


class SpectralTeacher(LinearTeacher):
    """Filters histories with the k leading right singular vectors V of N = D_U^-a/2 A D_I^-b.

    With `filter=ideal` the scores are H D_I^-c V V^T D_I^c, where H has the users' histories. With `filter=neighbourhood` they are
    H N^T N / σ² + α H D_I^-c V V^T D_I^c with the largest singular value σ. The family is that of GF-CF (Shen et al., CIKM 2021), which
    has a = 1 and b = c = 1/2. PureSVD is the ideal filter with a = b = c = 0.

    The sum of both filters has no k columns. Without `neighbours` it is its best approximation by k columns; with `neighbours` the ideal
    filter has vectors, and N^T N stays as the similarities of so many items a row, without its diagonal, which tells nothing of unseen
    items.

    k is `rank`, a `user_exponent`, b `item_exponent`, c `output_exponent`, α `filter_weight`.
    """

    engines: ClassVar[tuple[str, ...]] = ("full", "sampled")
    reads: ClassVar[tuple[str, ...]] = (
        "rank",
        "user_exponent",
        "item_exponent",
        "output_exponent",
        "filter",
        "filter_weight",
        "neighbours",
    )
    over_shards: ClassVar[tuple[str, ...]] = ("rank", "user_exponent", "item_exponent", "output_exponent", "filter")

    def __init__(self, inputs: LinearInputs, config: LinearConfig) -> None:
        super().__init__(inputs, config)
        self._spectra: dict[tuple[float, float], Factors] = {}
        self._lists = SharedLists(self.interactions.num_items)

    @classmethod
    def scores_histories(cls, config: LinearConfig) -> bool:
        return config.neighbours is not None

    @classmethod
    def fitting_bytes(cls, config: LinearConfig, counts: CatalogCounts) -> int:
        lists = list_bytes(counts.items, config.neighbours) + 4 * cls.similarity_bytes(config, counts) if config.neighbours else 0
        return lists + super().fitting_bytes(config, counts)

    @classmethod
    def check_settings(cls, config: LinearConfig) -> None:
        super().check_settings(config)
        if config.filter == "ideal" and config.filter_weight is not None:
            raise InputError(
                f"teacher.linear.filter_weight={config.filter_weight} has no meaning with teacher.linear.filter=ideal, which stands alone; "
                "leave it out, or set teacher.linear.filter=neighbourhood"
            )
        if config.filter != "neighbourhood" and config.neighbours is not None:
            raise InputError(
                f"teacher.linear.neighbours={config.neighbours} is the size of the neighbourhood of teacher.linear.filter=neighbourhood, "
                "which is not set; set it, or leave the neighbours out"
            )

    @classmethod
    def why_full(cls, config: TeacherConfig) -> str | None:
        if config.linear.filter == "neighbourhood":
            return "teacher.kind=spectral with teacher.linear.filter=neighbourhood is trained by the full engine alone"
        return super().why_full(config)

    @classmethod
    def fit_blocks(cls, blocks: NodeBlocks, config: LinearConfig, seed: int) -> tuple[Block, Block]:
        given = cls.given_over_shards(config)
        rank, c = min(given["rank"], blocks.num_items), given["output_exponent"]
        pair, scratch = working_blocks(blocks, rank)
        products = weighted(blocks, scratch, given["user_exponent"], given["item_exponent"])
        found = leading_blocks(blocks, products, pair, rank, seed, ITERATIONS)
        users, items = blocks.block(USERS, rank), blocks.block(ITEMS, rank)

        def axes(exponent: float) -> None:  # D_I^exponent V
            blocks.write(items, [found.items], lambda ids, degrees, x: degree_power(degrees, exponent)[:, None] * (x @ found.rotation))

        axes(0.5 - c)
        blocks.propagate(items, users)  # H D_I^-c V = Ã D_I^(1/2 - c) V
        axes(c)
        standardise_users(blocks, users, items)
        return users, items

    @classmethod
    def block_columns(cls, config: LinearConfig, counts: CatalogCounts) -> tuple[int, int]:
        rank = cls.num_columns(config, counts)
        width = width_of(rank, counts.items)
        return width + rank, 2 * width + rank

    def choices(self) -> dict[str, Choice]:
        if self.config.neighbours is not None:  # from GF-CF's own settings on, where trials are long and few
            start, exponents = {"user_exponent": 1.0, "item_exponent": 0.5, "output_exponent": 0.5}, exponent_choices()
            return {
                "filter_weight": Choice(0.3, (0.1, 0.3, 1.0, 3.0, 10.0)),
                "rank": rank_choice(self.interactions.num_items, 256),
                **{name: Choice(start[name], exponents[name].values) for name in ("output_exponent", "item_exponent", "user_exponent")},
            }
        open_filter = self.config.filter in (None, "neighbourhood")
        return {
            # The rank first: on TikTok it has to grow from 128 to 256 before the normalised graph ranks well at all (.038, then .090).
            "rank": rank_choice(self.interactions.num_items),
            **exponent_choices(),
            **({"filter": Choice("ideal", ("ideal", "neighbourhood"))} if open_filter else {}),
            **({"filter_weight": Choice(1.0, (0.1, 0.3, 1.0, 3.0))} if open_filter else {}),
        }

    def read(self, settings: Settings) -> Settings:
        has_weight = settings["filter"] == "neighbourhood"
        return {name: value for name, value in settings.items() if name != "filter_weight" or has_weight}

    def spectrum(self, settings: Settings) -> Factors:
        """Returns at least k leading singular vectors of N."""
        key, rank = (settings["user_exponent"], settings["item_exponent"]), settings["rank"]
        if key not in self._spectra or self._spectra[key].rank < min(rank, self.interactions.num_items):
            self._spectra.clear()
            weighted, like = self._weighted(settings), self.interactions.like
            self._spectra[key] = leading_factors(weighted, rank, self.inputs.seed, like, ITERATIONS)
        return self._spectra[key]

    def similarities(self, settings: Settings) -> Similarities:
        key = settings["user_exponent"], settings["item_exponent"]
        lists = self._lists.largest(key, settings["neighbours"], lambda: without_diagonal(graph_rows(self.interactions, *key)))
        inverse = 1 / self.spectrum(settings).values[0].square().clamp(min=1e-30)
        return lists.similarities(inverse.double() * self.interactions.item_scale(0.0))

    def vectors_beside(self, settings: Settings) -> tuple[Tensor, Tensor]:
        users, items = self._ideal(settings)
        unscaled = self.interactions.user_scale(0.5).to(users.dtype)[:, None] * users  # histories as they are, A in the place of D_U^-1/2 A
        return settings["filter_weight"] * unscaled, items.float().contiguous()

    def _weighted(self, settings: Settings) -> Scores:
        return self.interactions.weighted(settings["user_exponent"], settings["item_exponent"])

    def _ideal(self, settings: Settings) -> tuple[Tensor, Tensor]:
        """Returns vectors whose dot products are D_U^-1/2 A D_I^-c V V^T D_I^c."""
        of, rank, output = self.interactions, settings["rank"], settings["output_exponent"]
        axes = self.spectrum(settings).right[:, :rank]
        items = of.item_scale(output).to(axes.dtype)[:, None] * axes
        return of.histories(output).to_users(axes), items

    def vectors(self, settings: Settings) -> tuple[Tensor, Tensor]:
        ideal = self._ideal(settings)
        if settings["filter"] == "ideal":
            return ideal
        return self._beside_neighbourhood(ideal, settings)

    def _beside_neighbourhood(self, ideal: tuple[Tensor, Tensor], settings: Settings) -> tuple[Tensor, Tensor]:
        """Returns the best approximation of H N^T N / σ² + α (ideal filter) by vectors with k columns."""
        histories, weighted, weight = self.interactions.histories(), self._weighted(settings), settings["filter_weight"]
        (users, items), spectrum = ideal, self.spectrum(settings)
        inverse = 1 / spectrum.values[0].square().clamp(min=1e-30)

        def compare(x: Tensor) -> Tensor:  # N^T N x / σ²
            return inverse * weighted.to_items(weighted.to_users(x))

        scores = Scores(
            histories.num_items,
            lambda x: histories.to_users(compare(x)) + weight * (users @ (items.T @ x)),
            lambda y: compare(histories.to_items(y)) + weight * (items @ (users.T @ y)),
        )

        def exact() -> tuple[Tensor, Tensor]:
            of = self.interactions
            inner = of.item_scale(-settings["output_exponent"]).to(items.dtype)[:, None] * spectrum.right[:, : settings["rank"]]
            neighbourhood = compare(torch.eye(of.num_items, dtype=items.dtype, device=items.device))
            return of.dense_histories(), neighbourhood + weight * items @ inner.T

        return self.best_vectors(tuple(settings.values()), scores, settings["rank"], exact)
