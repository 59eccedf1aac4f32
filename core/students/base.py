"""What a student is: a model from rows of users and items, and the graph, to the vectors that serve (docs/method.md 2).

A student holds no rows itself. The engine has them, as whole tables or sharded over the workers, and hands the student those that it needs:
learnt ID vectors, or the teacher's frozen final vectors. The student's own parameters are what it has beside them, such as learnt maps.
"""

from typing import ClassVar

from torch import Tensor, nn

from ..config import StudentConfig
from ..graph import Propagation


class Student(nn.Module):
    """The interface of every student; `student.kind=module:Class` names a subclass of your own.

    Attributes:
        engines: The engines that can train it. One that only "full" trains has to be able to compute all vectors from whole tables; one
            that "sampled" trains is a `LayeredStudent`.
        least_layers: The smallest `student.layers` that it can have.
        learns_rows: True where its rows are ID vectors that are learnt; False where they are the teacher's final vectors, frozen.
    """

    component: ClassVar[str] = "student"
    engines: ClassVar[tuple[str, ...]] = ("full",)
    least_layers: ClassVar[int] = 0
    learns_rows: ClassVar[bool] = True

    def __init__(self, config: StudentConfig, user_dim: int, item_dim: int) -> None:
        """Builds the parameters that the student has beside its rows; the caller seeds torch's generator.

        Args:
            config: The student's settings.
            user_dim, item_dim: Columns of the rows of users and items; `config.dim` where they are learnt.
        """
        super().__init__()
        self.config = config

    @classmethod
    def num_hops(cls, config: StudentConfig) -> int:
        """Hops that its vectors reach over the train graph."""
        return 0

    def vectors(self, graph: Propagation, users: Tensor, items: Tensor) -> tuple[Tensor, Tensor]:
        """Final vectors of the users and items of the graph's level 0, [num_users, d_S] and [num_items, d_S].

        Args:
            graph: The whole train graph, or sampled blocks of `num_hops` hops.
            users, items: Their rows [n, user_dim] and [m, item_dim], at level `num_hops` or deeper.
        """
        raise NotImplementedError

    def regularised(self, users: Tensor, items: list[Tensor]) -> list[Tensor]:
        """What L2 acts on, from the batch's own rows: these rows themselves, unless a student says otherwise.

        Args:
            users: Rows of the batch's users [batch, user_dim].
            items: Rows of its positives and of its negatives, each [batch, item_dim].
        """
        return [users, *items]
