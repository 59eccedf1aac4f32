"""Defines the interface of a task: what an engine asks of a model that it trains."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Generator
from typing import ClassVar, Generic

from torch import Tensor

from ...core.config import OptimizerConfig
from ...core.histories import Histories
from ...core.rows import RowTables, initial_rows
from ...core.sides import ITEMS, USERS
from ...core.spectral import NORMALISED
from ..artifacts.output import Output
from ..engines.examples import Examples
from ..engines.learners import Learner
from ..engines.reduction import Reduction
from ..engines.view import Batch, FeatureInputs, View
from ..loop.selection import Selection
from .layers import LayerByLayer

Pair = tuple[Tensor, Tensor]
RowsOf = Callable[[Tensor], Tensor]


class Task(ABC, Generic[Batch]):
    """Describes a model in training: its losses, its examples and its artifact.

    Attributes:
        stage: "teacher", "student" or "tuning".
        train: Settings of epochs, batches and learning rate.
        dim, init_scale, seed: Columns, standard deviation at the start, and seed of the ID vectors.
        user_balance: Exponent of the examples' weights.
        examples: What an epoch visits, as in `teacher.examples`.
        starts_spectrally: Whether the ID vectors start at the leading singular vectors of the train graph, at the scale `init_scale`.
        start_exponents: The exponents a of users and b of items: a spectral start is that of D_U^-a A D_I^-b.
        learns_rows: Whether the rows that the engine holds are learnt; False where they are frozen, or where the model holds its own.
        num_hops: The number of hops that the vectors reach over the train graph.
        reads_features: Whether `reduce` computes anything from features.
        whitens: Whether standardised features are decorrelated.
        sends_prompt: Whether a step reads prompts, so that owners send them together with reduced features.
        reduction: The reduction layers' learner, which then backpropagates the loss; None for plain autograd.
        histories: Scores from all users' histories, which are added to the final vectors' dot products; the full engine alone has them.
    """

    stage: ClassVar[str]
    train: OptimizerConfig
    dim: int
    init_scale: float
    seed: int
    user_balance: float
    num_hops: int
    examples: str = "interactions"
    starts_spectrally: bool = False
    start_exponents: tuple[float, float] = NORMALISED
    learns_rows: bool = True
    reads_features: bool = False
    whitens: bool = False
    sends_prompt: bool = False
    reduction: Reduction | None = None
    histories: Histories = ()

    @property
    @abstractmethod
    def vector_dims(self) -> dict[str, int]:
        """Returns the columns of the vectors that the task infers, by name: `final`, and a teacher's `modal.<modality>` and `prompt`."""

    def build(self, dims: dict[str, int], counts: tuple[int, int], example: Callable[[], FeatureInputs]) -> None:
        """Builds what depends on the catalog; the engine calls it once, before all other methods.

        Args:
            dims: d_m by modality, in the order that modalities have everywhere.
            counts: The numbers of users and of items.
            example: Returns inputs of the kind that `reduce` takes.
        """

    @abstractmethod
    def learners(self, tables: RowTables | None) -> list[Learner]:
        """Returns the task's replicated weights with their optimizers.

        Args:
            tables: The engine's whole tables of users' and items' rows; ID vectors in them are parameters, and so are replicated weights
                too. None where the rows are sharded.
        """

    def id_tables(self, tables: RowTables) -> RowTables:
        """Returns the whole tables of ID vectors that a spectral start fills: the engine's own, unless the model holds others."""
        return tables

    def initial_rows(self, own_ids: Pair) -> tuple[RowsOf, RowsOf]:
        """Returns two functions, for users and for items, from dataset indices int64 [n] to initial rows float32 [n, width]; collective.

        Args:
            own_ids: This worker's share of the users and of the items, int64 dataset indices, for sums over all rows that the workers
                share.
        """
        return self._seeded_rows(USERS), self._seeded_rows(ITEMS)

    def _seeded_rows(self, side: int) -> RowsOf:
        return lambda ids: initial_rows(side, ids, self.dim, self.init_scale, self.seed)

    def open(self, epochs: range) -> None:
        """Prepares the source of the batches of these epochs."""

    def close(self) -> None:
        """Closes the source that `open` prepared."""

    def start_epoch(self, examples: Examples, vectors: Callable[[], dict[str, Pair]]) -> None:
        """Prepares what an epoch's batches draw from beside their source; collective. The full engine alone calls it.

        Args:
            examples: The train interactions.
            vectors: Returns all vectors that `vector_dims` names, of all users and items, from the current weights; collective.
        """

    @abstractmethod
    def batches(self, examples: Examples, epoch: int, num_parts: int) -> Generator[Batch, None, None]:
        """Yields this worker's share of every micro-batch of an epoch; each step consists of `num_parts` micro-batches."""

    def reduce(self, inputs: FeatureInputs) -> dict[str, Tensor]:
        """Computes rows from features where these are held: the prompts `user` and `item`, and `reduced.<modality>`; each [n, d]."""
        return {}

    @abstractmethod
    def terms(self, view: View, batch: Batch) -> dict[str, Tensor]:
        """Computes the loss terms of this worker's share of a batch, scalars by name; their sum is the loss."""

    @abstractmethod
    def vectors(self, view: View) -> dict[str, Pair]:
        """Computes all vectors that `vector_dims` names, of all users and items, from a view of the whole graph."""

    def infer(self, layers: LayerByLayer) -> None:
        """Fills the tables of all vectors that `vector_dims` names, layer by layer over sharded tables; the sampled engine calls it."""
        raise NotImplementedError(f"{type(self).__name__} is trained by the full engine alone")

    def refresh(self, reduce_all: Callable[[], dict[str, Tensor]], gather: Callable[[Tensor], Tensor]) -> None:
        """Updates what follows from the weights but is no weight; called at the start, after every epoch and when weights are restored.

        The full engine alone calls it.

        Args:
            reduce_all: Returns the reduced features of all items by modality; collective.
            gather: Returns the rows of all items from each worker's rows of its own items; collective.
        """

    def epoch_facts(self) -> dict[str, float]:
        """Returns further numbers for an epoch's row in metrics.jsonl."""
        return {}

    @abstractmethod
    def write(self, output: Output, selection: Selection) -> None:
        """Writes the trained artifact from the best epoch's weights and vectors; a collective call."""
