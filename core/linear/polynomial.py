"""Defines polynomial filters of the item graph, which need no decomposition (Turbo-CF: Park, Shin, Shin, SIGIR 2024)."""

from typing import ClassVar

import torch
from torch import Tensor

from ..config import TeacherConfig
from ..errors import InputError
from ..graph import degree_power
from ..histories import Similarities
from ..sides import ITEMS, USERS
from .adjacency import ItemLists, list_bytes
from .base import NEIGHBOURS, LinearTeacher, chained, exponent_choices, rank_choice
from .blocks import Block, BlockProducts, NodeBlocks, leading_blocks, standardise_users, weighted, working_blocks
from .blocks import scaled as scaled_rows
from .config import LinearConfig
from .factors import ITERATIONS as FACTOR_ITERATIONS
from .factors import Product, Scores, leading_factors, width_of
from .fit import CatalogCounts, LinearInputs
from .lists import Rows, SharedLists, graph_rows, neighbour_choice, without_diagonal
from .search import Choice, Settings


class PolynomialTeacher(LinearTeacher):
    """Filters histories with a polynomial of the item graph P = N^T N / σ², N = D_U^-a/2 A D_I^-b with the largest singular value σ.

    The scores are H D_I^-c (I - (I - P)^K) D_I^c. K = 1 is P and K = 2 is 2P - P², the linear and the second-order filter of Turbo-CF; with
    larger K the filter passes more, and cut to the rank of the vectors it comes close to the ideal filter.

    With `power` s = 1 products with P are two propagations, so that P is never built. Otherwise its entries are raised to the power s,
    every row keeps its `neighbours` largest, and P is divided by its largest singular value then. a is `user_exponent`, b
    `item_exponent`, c `output_exponent`, K `degree`.

    With the rank 0 the filter is linear, K = 1, and P is built with `neighbours` entries a row whatever the power is, without its diagonal,
    which tells nothing of unseen items.
    """

    keeps_similarities: ClassVar[bool] = True

    engines: ClassVar[tuple[str, ...]] = ("full", "sampled")
    over_shards: ClassVar[tuple[str, ...]] = ("rank", "user_exponent", "item_exponent", "output_exponent", "degree")
    reads: ClassVar[tuple[str, ...]] = ("rank", "user_exponent", "item_exponent", "output_exponent", "degree", "power", "neighbours")

    def __init__(self, inputs: LinearInputs, config: LinearConfig) -> None:
        super().__init__(inputs, config)
        self._graph: tuple[tuple, Scores] | None = None
        self._lists = SharedLists(self.interactions.num_items)

    @classmethod
    def fitting_bytes(cls, config: LinearConfig, counts: CatalogCounts) -> int:
        entries = list_bytes(counts.items, config.neighbours or NEIGHBOURS[-1]) if _has_entries(config) else 0
        return entries + super().fitting_bytes(config, counts)

    @classmethod
    def check_settings(cls, config: LinearConfig) -> None:
        super().check_settings(config)
        if config.rank == 0 and config.degree not in (None, 1):
            raise InputError(
                f"teacher.linear.degree={config.degree} has no meaning with teacher.linear.rank=0, which keeps a linear filter of the item "
                "graph; leave it out, or set a rank of at least 1"
            )
        if not _has_entries(config) and config.neighbours is not None:
            raise InputError(
                f"teacher.linear.neighbours={config.neighbours} has no meaning with teacher.linear.power=1, which never builds the item "
                "graph; leave it out, or set another power, or teacher.linear.rank=0"
            )

    @classmethod
    def why_full(cls, config: TeacherConfig) -> str | None:
        if config.linear.power != 1:
            return f"teacher.kind=polynomial with teacher.linear.power={config.linear.power} is trained by the full engine alone"
        return super().why_full(config)

    @classmethod
    def fit_blocks(cls, blocks: NodeBlocks, config: LinearConfig, seed: int) -> tuple[Block, Block]:
        given = cls.given_over_shards(config)
        rank = min(given["rank"], blocks.num_items)
        pair, scratch = working_blocks(blocks, rank)
        products = filtered_histories(blocks, given, pair, scratch, seed)
        found = leading_blocks(blocks, products, pair, rank, seed, FACTOR_ITERATIONS)
        users, items = blocks.block(USERS, rank), blocks.block(ITEMS, rank)
        root = found.values.sqrt()
        inverse = torch.where(root > 0, 1 / root.clamp(min=torch.finfo(root.dtype).tiny), 0.0)
        blocks.write(users, [found.users], lambda ids, degrees, x: x @ (found.rotation * inverse))
        blocks.write(items, [found.items], lambda ids, degrees, x: x @ (found.rotation * root))
        standardise_users(blocks, users, items)
        return users, items

    @classmethod
    def block_columns(cls, config: LinearConfig, counts: CatalogCounts) -> tuple[int, int]:
        rank = cls.num_columns(config, counts)
        width = width_of(rank, counts.items)
        return width + rank, 3 * width + rank

    def choices(self) -> dict[str, Choice]:
        neighbours = {"neighbours": neighbour_choice(self.interactions.num_items, 200)} if _has_entries(self.config) else {}
        return {
            "rank": rank_choice(self.interactions.num_items),
            "degree": Choice(2, (1, 2, 3, 5, 8, 13)),
            **exponent_choices(),
            **neighbours,
        }

    def given(self) -> Settings:
        return {**super().given(), **({"degree": 1} if self.config.rank == 0 else {})}

    def read(self, settings: Settings) -> Settings:
        return {name: value for name, value in settings.items() if name != "neighbours" or _has_entries(self.config)}

    def item_graph(self, settings: Settings) -> Scores:
        """Returns P as products, with the largest singular value 1."""
        key = tuple(settings.get(name) for name in ("user_exponent", "item_exponent", "power", "neighbours"))
        if self._graph is None or self._graph[0] != key:
            products = self._by_propagation(settings) if settings["power"] == 1 else self._by_entries(settings)
            largest = leading_factors(products, 1, self.inputs.seed, self.interactions.like).values[0].clamp(min=1e-30)
            self._graph = key, scaled(products, 1 / largest)
        return self._graph[1]

    def _by_propagation(self, settings: Settings) -> Scores:
        once = self.interactions.weighted(settings["user_exponent"], settings["item_exponent"])

        def both_ways(x: Tensor) -> Tensor:
            return once.to_items(once.to_users(x))

        return Scores(once.num_items, both_ways, both_ways)

    def _by_entries(self, settings: Settings) -> Scores:
        return self._entries(settings).products()

    def _entries(self, settings: Settings) -> ItemLists:
        """Returns the largest entries of every row of P, up to its largest singular value."""
        key = settings["user_exponent"], settings["item_exponent"], settings["power"]

        def rows() -> Rows:
            graph = graph_rows(self.interactions, *key)
            return without_diagonal(graph) if self.config.rank == 0 else graph

        return self._lists.largest(key, settings["neighbours"], rows)

    def similarities(self, settings: Settings) -> Similarities:
        of, output = self.interactions, settings["output_exponent"]
        return self._entries(settings).similarities(of.item_scale(-output), of.item_scale(output))

    def vectors(self, settings: Settings) -> tuple[Tensor, Tensor]:
        of, output, degree, graph = self.interactions, settings["output_exponent"], settings["degree"], self.item_graph(settings)
        after = of.item_scale(output).to(of.dtype)[:, None]

        def filtered(product: Product) -> Product:
            """Returns x -> (I - (I - P)^K) x, by K products with P: with r = (I - P)^K x, the result is x - r."""

            def apply(x: Tensor) -> Tensor:
                rest = x
                for _ in range(degree):
                    rest = rest - product(rest)
                return x - rest

            return apply

        forward, backward = filtered(graph.to_users), filtered(graph.to_items)
        outer = Scores(of.num_items, lambda x: forward(after * x), lambda x: after * backward(x))
        key = tuple(value for name, value in settings.items() if name != "rank")

        def exact() -> tuple[Tensor, Tensor]:
            everything = torch.eye(of.num_items, dtype=of.dtype, device=of.like.device)
            return of.dense_histories(output), outer.to_items(everything)  # row i is column i of the filter

        return self.best_vectors(key, chained(of.histories(output), outer), settings["rank"], exact)


def filtered_histories(blocks: NodeBlocks, settings: Settings, pair: tuple[Block, Block], scratch: Block, seed: int) -> BlockProducts:
    """Returns the scores H D_I^-c (I - (I - P)^K) D_I^c as products with blocks.

    Args:
        blocks: The blocks.
        settings: Values by name.
        pair: Blocks of users and items that are overwritten here, and free afterwards.
        scratch: A block of items that products overwrite.
        seed: Seed of the random rows from which the largest singular value is computed.
    """
    a, b, c = (settings[f"{name}_exponent"] for name in ("user", "item", "output"))
    once, rest = weighted(blocks, scratch, a, b), blocks.block(ITEMS, scratch.dim)
    largest = leading_blocks(blocks, once, pair, 1, seed, 2 * FACTOR_ITERATIONS).values[0].square().clamp(min=1e-30)

    def reduce(users: Block) -> None:
        """Multiplies `rest` by (I - P)^K; overwrites `users` and `scratch`."""
        for _ in range(settings["degree"]):
            once.to_users(rest, users)
            once.to_items(users, scratch)
            blocks.write(rest, [rest, scratch], lambda ids, degrees, r, p: r - p / largest)

    def to_users(items: Block, users: Block) -> None:
        scaled_rows(blocks, items, rest, c)
        reduce(users)
        blocks.write(
            scratch,
            [items, rest],
            lambda ids, degrees, x, r: degree_power(degrees, 0.5 - c)[:, None] * (degree_power(degrees, c)[:, None] * x - r),
        )
        blocks.propagate(scratch, users)  # H D_I^-c = Ã D_I^(1/2 - c)

    def to_items(users: Block, items: Block) -> None:
        blocks.propagate(users, scratch)
        scaled_rows(blocks, scratch, items, 0.5 - c)
        scaled_rows(blocks, items, rest, 0.0)
        reduce(users)
        blocks.write(items, [items, rest], lambda ids, degrees, x, r: degree_power(degrees, c)[:, None] * (x - r))

    return BlockProducts(to_users, to_items)


def _has_entries(config: LinearConfig) -> bool:
    """Whether the entries of the item graph are computed."""
    return config.power != 1 or config.rank == 0


def scaled(products: Scores, factor: Tensor) -> Scores:
    """Returns a matrix times a number."""
    return Scores(products.num_items, lambda x: factor * products.to_users(x), lambda x: factor * products.to_items(x))
