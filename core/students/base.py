"""Defines the interface of a student: a model from rows of users and items, and the graph, to the vectors that serve (docs/method.md 2).

A student holds no rows itself. The engine holds them, as whole tables or sharded over the workers, and hands the student the rows that it
needs: learnt ID vectors, or the teacher's frozen final vectors. The student's own parameters are all others, such as learnt maps.
"""

from typing import ClassVar

from torch import Tensor, nn

from ..config import StudentConfig
from ..graph import Propagation


class Student(nn.Module):
    """Defines the interface of every student; `student.kind=module:Class` names a subclass of your own.

    Attributes:
        engines: The engines that can train the student. A student for "sampled" has to be a `LayeredStudent`; for "full" alone it has to
            compute all vectors from whole tables.
        least_layers: The smallest `student.layers` that the student can have.
        learns_rows: True where the student's rows are ID vectors that are learnt; False where they are the teacher's frozen final vectors.
    """

    component: ClassVar[str] = "student"
    engines: ClassVar[tuple[str, ...]] = ("full",)
    least_layers: ClassVar[int] = 0
    learns_rows: ClassVar[bool] = True

    def __init__(self, config: StudentConfig, user_dim: int, item_dim: int) -> None:
        """Builds the student's own parameters; the caller seeds torch's generator.

        Args:
            config: The student's settings.
            user_dim, item_dim: Columns of the rows of users and of items; `config.dim` where the rows are learnt.
        """
        super().__init__()
        self.config = config

    @classmethod
    def num_hops(cls, config: StudentConfig) -> int:
        """Returns the number of hops that the student's vectors reach over the train graph."""
        return 0

    def vectors(self, graph: Propagation, users: Tensor, items: Tensor) -> tuple[Tensor, Tensor]:
        """Computes the final vectors of the users and items at the graph's level 0, [num_users, d_S] and [num_items, d_S].

        Args:
            graph: The whole train graph, or sampled blocks of `num_hops` hops.
            users, items: Rows [n, user_dim] and [m, item_dim], at level `num_hops` or deeper.
        """
        raise NotImplementedError

    def regularised(self, users: Tensor, items: list[Tensor]) -> list[Tensor]:
        """Returns the rows that L2 acts on: those of the batch, unless a subclass computes others from them.

        Args:
            users: Rows of the batch's users [batch, user_dim].
            items: Rows of the batch's positives and of its negatives, each [batch, item_dim].
        """
        return [users, *items]
