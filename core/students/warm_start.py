"""Computes a student's initial rows from the teacher's final vectors, at the student's size (docs/method.md 2, warm start)."""

from collections.abc import Callable, Iterable, Sequence

import torch
from torch import Tensor

from ..histories import HistoryScores
from ..linear.factors import Scores, leading_factors


def project(users: Tensor, items: Tensor, dim: int) -> tuple[Tensor, Tensor]:
    """Computes vectors of size `dim` whose dot products come closest to those of the given vectors, over all users and items.

    Args:
        users, items: float [num_users, d] and [num_items, d].
        dim: Columns of the result.

    Returns:
        [num_users, dim] and [num_items, dim], in the dtype of the arguments; see `projection_maps` for the equations.
    """
    maps = warm_start_maps([[users], [items]], dim)
    return (users.double() @ maps[0]).to(users.dtype), (items.double() @ maps[1]).to(items.dtype)


def warm_start_maps(
    sides: Iterable[Iterable[Tensor]], dim: int, sum_: Callable[[list[Tensor]], None] = lambda tensors: None
) -> tuple[Tensor, Tensor]:
    """Computes the `projection_maps` of vectors that come in chunks, and that may be shared among several workers.

    Args:
        sides: The chunks of the users' vectors and those of the items' vectors, float [n, d] each; each side has at least one chunk,
            which may be empty.
        dim: Columns of the maps.
        sum_: Sums tensors over the workers, in place; by default there is one worker.

    Returns:
        The users' map and the items' map, float64 [d, dim].
    """
    grams = []
    for chunks in sides:
        gram = None
        for rows in chunks:
            gram = torch.zeros(rows.shape[1], rows.shape[1], dtype=torch.float64) if gram is None else gram
            wide = rows.double()
            gram.addmm_(wide.T, wide)
        assert gram is not None
        grams.append(gram)
    sum_(grams)
    return projection_maps(grams[0], grams[1], dim)


def closest_tables(users: Tensor, items: Tensor, histories: Sequence[HistoryScores], dim: int, seed: int) -> tuple[Tensor, Tensor]:
    """Computes tables of size `dim` whose dot products come closest to scores that no vectors hold, by block power iterations.

    Args:
        users, items: float32 [num_users, d] and [num_items, d], whose dot products are one part of the scores; d may be 0.
        histories: The other parts, of all users.
        dim: Columns of the tables.
        seed: Seed of the random rows that the iterations begin with.

    Returns:
        float32 [num_users, dim] and [num_items, dim]; the largest entry of a column of the users is positive.
    """
    parts = [part.products() for part in histories]

    def to_users(x: Tensor) -> Tensor:
        return sum((part[0](x) for part in parts), users @ (items.T @ x))

    def to_items(y: Tensor) -> Tensor:
        return sum((part[1](y) for part in parts), items @ (users.T @ y))

    found = leading_factors(Scores(items.shape[0], to_users, to_items), dim, seed, users)
    tables = [torch.nn.functional.pad(rows, (0, dim - rows.shape[1])) for rows in found.vectors(dim)]  # a tiny catalog has fewer
    signs = tables[0].gather(0, tables[0].abs().argmax(0, keepdim=True)).sign()
    return tables[0] * signs, tables[1] * signs


def projection_maps(users: Tensor, items: Tensor, dim: int) -> tuple[Tensor, Tensor]:
    """Computes the maps A and B for which (U A)(I B)^T is the best approximation of U I^T of rank `dim` in least squares.

    With U = Q_U R_U and I = Q_I R_I, where the columns of Q are orthonormal, and the singular value decomposition R_U R_I^T = P S W^T, the
    maps are A = R_U^-1 P S^½ and B = R_I^-1 W S^½, cut to `dim` columns (Eckart and Young 1936). With `dim` of d or more nothing is lost:
    the maps keep the vectors as they are and append zeros.

    Args:
        users, items: U^T U and I^T I, float64 [d, d].
        dim: Columns of the maps.
    Returns:
        A and B, float64 [d, dim]; the largest entry of a column of A is positive.
    """
    size = users.shape[0]
    if dim >= size:
        padded = torch.eye(size, dim, dtype=users.dtype)
        return padded, padded
    (user_root, user_inverse), (item_root, item_inverse) = _root(users), _root(items)
    left, values, right = torch.linalg.svd(user_root @ item_root.T)
    scale = values[:dim].sqrt()
    maps = user_inverse @ (left[:, :dim] * scale), item_inverse @ (right.T[:, :dim] * scale)
    signs = maps[0].gather(0, maps[0].abs().argmax(0, keepdim=True)).sign()
    return maps[0] * signs, maps[1] * signs


def _root(gram: Tensor) -> tuple[Tensor, Tensor]:
    """Returns R with X = Q R from the Gram matrix X^T X, and the pseudo-inverse of R."""
    values, vectors = torch.linalg.eigh(gram)
    kept = values > 1e-12 * values.max().clamp(min=1e-300)
    values = torch.where(kept, values, 1.0)
    root = torch.where(kept, values.sqrt(), 0.0)[:, None] * vectors.T
    return root, vectors * torch.where(kept, values.rsqrt(), 0.0)
