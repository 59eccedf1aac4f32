"""Defines iALS (Hu, Koren, Volinsky, ICDM 2008) through the library `implicit`, an optional extra."""

import importlib.util
from typing import ClassVar

import torch
from torch import Tensor

from ..errors import InputError
from .base import LinearTeacher, rank_choice
from .config import LinearConfig
from .fit import CatalogCounts
from .search import Choice, Settings


class IalsTeacher(LinearTeacher):
    """Factorises the interactions with weighted least squares: Σ_ui c_ui (A_ui - <x_u, y_i>)² + λ (Σ_u |x_u|² + Σ_i |y_i|²).

    c is 1 where there is no interaction. Where there is one, it is `confidence` times deg(u)^-a, divided by the mean of deg(u)^-a over the
    interactions. a is `user_exponent`, λ `regularisation`; `rank` is the number of factors. The library computes on one thread of a CPU, so
    that the same seed gives the same vectors.
    """

    reads: ClassVar[tuple[str, ...]] = ("rank", "user_exponent", "confidence", "regularisation", "iterations")

    @classmethod
    def check_installed(cls) -> None:
        if importlib.util.find_spec("implicit") is None:
            raise InputError("teacher.kind=ials needs the library `implicit`, which is not installed: pip install 'promptmm[ials]'")

    @classmethod
    def fitting_bytes(cls, config: LinearConfig, counts: CatalogCounts) -> int:
        """Returns the bytes of the factors, of scaled copies, and of the interactions by row and by column."""
        return (counts.users + counts.items) * cls.num_columns(config, counts) * 4 * 4 + counts.interactions * (2 * 8 + 3 * 12)

    def choices(self) -> dict[str, Choice]:
        return {
            "confidence": Choice(5.0, (1.0, 2.0, 5.0, 10.0, 20.0, 60.0)),
            "regularisation": Choice(10.0, (0.1, 1.0, 3.0, 10.0, 30.0, 100.0)),
            "rank": rank_choice(self.interactions.num_items, 64),
            "user_exponent": Choice(0.0, (0.0, 0.5, 1.0)),
        }

    def vectors(self, settings: Settings) -> tuple[Tensor, Tensor]:
        self.check_installed()
        import scipy.sparse
        from implicit.cpu.als import AlternatingLeastSquares
        from threadpoolctl import threadpool_limits

        graph, of = self.inputs.graph, self.interactions
        weights = of.user_scale(-settings["user_exponent"])[graph.users.rows]
        weights = (settings["confidence"] * weights / weights.mean()).float().cpu().numpy()
        shape = graph.num_users, graph.num_items
        train = scipy.sparse.csr_matrix((weights, graph.users.columns.cpu().numpy(), graph.users.pointers.cpu().numpy()), shape)
        model = AlternatingLeastSquares(
            factors=settings["rank"], regularization=settings["regularisation"], alpha=1.0, iterations=settings["iterations"],
            num_threads=1, random_state=self.inputs.seed, dtype="float32",
        )  # fmt: skip
        with threadpool_limits(1, "blas"):
            model.fit(train, show_progress=False)
        users, items = (torch.as_tensor(rows, device=of.like.device) for rows in (model.user_factors, model.item_factors))
        return users, items
