"""The interface of a task: what the engines ask of whatever is trained."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Generator
from typing import ClassVar, Generic

from torch import Tensor

from ...core.config import OptimizerConfig
from ...core.rows import RowTables, initial_rows
from ...core.sides import ITEMS, USERS
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
    """Something that is trained: a model with its losses, its examples and what it leaves behind.

    Attributes:
        stage: "teacher" or "student".
        train: Epochs, batches and the learning rate.
        dim, init_scale, seed: Columns and seeded start of its ID vectors.
        user_balance: Exponent of the examples' weights.
        learns_rows: Whether its rows are learnt; False where they are frozen, or where its model keeps rows of its own.
        num_hops: Hops that its vectors reach over the train graph.
        reads_features: Whether `reduce` has anything to do.
        whitens: Whether standardised features are decorrelated.
        sends_prompt: Whether a step reads prompts beside reduced features, so that they have to travel with these.
        reduction: What backpropagates the loss where its reduction layers need it; None: plain autograd.
    """

    stage: ClassVar[str]
    train: OptimizerConfig
    dim: int
    init_scale: float
    seed: int
    user_balance: float
    num_hops: int
    learns_rows: bool = True
    reads_features: bool = False
    whitens: bool = False
    sends_prompt: bool = False
    reduction: Reduction | None = None

    @property
    @abstractmethod
    def vector_dims(self) -> dict[str, int]:
        """Names and columns of the vectors that it infers: `final`, and a teacher's `modal.<modality>` and `prompt`."""

    def build(self, dims: dict[str, int], counts: tuple[int, int], example: Callable[[], FeatureInputs]) -> None:
        """Builds what depends on the catalog; the engine calls it once, before all else.

        Args:
            dims: d_m by modality, in the order of modalities everywhere.
            counts: Number of users and of items.
            example: Makes inputs that its reduction can be run on.
        """

    @abstractmethod
    def learners(self, tables: RowTables | None) -> list[Learner]:
        """Its replicated weights with their optimizers.

        Args:
            tables: The whole tables of its rows where the engine keeps them so, with `user` and `item` in them: ID vectors as parameters,
                which are replicated weights too. None where they are sharded.
        """

    def initial_rows(self, own_ids: Pair) -> tuple[RowsOf, RowsOf]:
        """Returns where its rows of users and of items start, from dataset indices int64 [n] to rows float32 [n, width]; collective.

        Args:
            own_ids: Dataset indices of users and of items, int64: this worker's share of them, for sums that all workers add up.
        """
        return self._seeded_rows(USERS), self._seeded_rows(ITEMS)

    def _seeded_rows(self, side: int) -> RowsOf:
        return lambda ids: initial_rows(side, ids, self.dim, self.init_scale, self.seed)

    def open(self, epochs: range) -> None:
        """Opens what the batches of these epochs are made from."""

    def close(self) -> None:
        """Ends what `open` started."""

    @abstractmethod
    def batches(self, examples: Examples, epoch: int, num_parts: int) -> Generator[Batch, None, None]:
        """Returns this worker's share of every micro-batch of every step of an epoch, each step in `num_parts` of them."""

    def reduce(self, inputs: FeatureInputs) -> dict[str, Tensor]:
        """Returns what is made of features where they live: `user` and `item` (prompts) and `reduced.<modality>`."""
        return {}

    @abstractmethod
    def terms(self, view: View, batch: Batch) -> dict[str, Tensor]:
        """Returns the loss terms of this worker's share, scalars by name; their sum is the loss."""

    @abstractmethod
    def vectors(self, view: View) -> dict[str, Pair]:
        """Returns all that `vector_dims` names, of all users and items, from a view of the whole graph."""

    def infer(self, layers: LayerByLayer) -> None:
        """Fills the final vectors' tables, and its other ones, layer by layer over tables that are sharded; the sampled engine's way."""
        raise NotImplementedError(f"{type(self).__name__} is trained by the full engine alone")

    def refresh(self, reduce_all: Callable[[], dict[str, Tensor]], gather: Callable[[Tensor], Tensor]) -> None:
        """Makes anew what follows from the weights but is no weight; after every epoch, and when weights were restored.

        Args:
            reduce_all: Reduced features of all items by modality.
            gather: From each worker's rows for its own items to the rows of all items; collective.
        """

    def epoch_facts(self) -> dict[str, float]:
        """Further numbers for an epoch's row."""
        return {}

    @abstractmethod
    def write(self, output: Output, selection: Selection) -> None:
        """Writes what training leaves behind, with the best weights restored; a collective call."""
