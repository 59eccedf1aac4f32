"""Lightweight students (method.md 2): ID vectors and at most a light propagation, nothing multi-modal at inference.

Every student is a module with `vectors(graph)`, its final user and item vectors, and `rows(users, items)`, what L2 acts on.
"""

import itertools

import torch
from torch import Tensor, nn

from .config import StudentConfig
from .errors import InputError
from .graph import BipartiteGraph, Propagation, light_propagation
from .random import derive_seed
from .sampling import STREAM_INITIAL
from .teacher import IdTables


class Student(nn.Module):
    """ID tables with `layers` rounds of LightGCN propagation; 0 layers is matrix factorisation."""

    def __init__(self, num_users: int, num_items: int, config: StudentConfig, seed: int) -> None:
        super().__init__()
        self.layers = 0 if config.kind == "mf" else config.layers
        self.ids = IdTables(num_users, num_items, config.dim, config.init_scale, seed)

    def vectors(self, graph: BipartiteGraph) -> tuple[Tensor, Tensor]:
        """Final vectors [num_users, d_S] and [num_items, d_S]."""
        return self.propagate(graph, self.ids.user, self.ids.item)

    def propagate(self, graph: Propagation, users: Tensor, items: Tensor) -> tuple[Tensor, Tensor]:
        """Final vectors of the graph's level 0 from rows of the ID tables at level `layers` or deeper."""
        return light_propagation(graph, users, items, self.layers)

    def rows(self, users: Tensor, items: list[Tensor]) -> list[Tensor]:
        """Layer-0 rows of the batch."""
        return [self.ids.user[users], *(self.ids.item[i] for i in items)]


class GcnStudent(Student):
    """Graph convolutions with a learnt map and a non-linearity per layer (Kipf and Welling 2017); layers are averaged."""

    def __init__(self, num_users: int, num_items: int, config: StudentConfig, seed: int) -> None:
        super().__init__(num_users, num_items, config, seed)
        self.maps = nn.ModuleList(nn.Linear(config.dim, config.dim) for _ in range(config.layers))

    def propagate(self, graph: Propagation, users: Tensor, items: Tensor) -> tuple[Tensor, Tensor]:
        user_sum, item_sum = graph.users_at(users, 0), graph.items_at(items, 0)
        for hop, layer in zip(reversed(range(self.layers)), self.maps):
            of_users, of_items = graph.to_users(items, hop), graph.to_items(users, hop)
            users = torch.tanh(layer(of_users + graph.users_at(users, hop)))
            items = torch.tanh(layer(of_items + graph.items_at(items, hop)))
            user_sum, item_sum = user_sum + graph.users_at(users, 0), item_sum + graph.items_at(items, 0)
        return user_sum / (self.layers + 1), item_sum / (self.layers + 1)


class MlpStudent(nn.Module):
    """A multilayer perceptron on frozen vectors (the teacher's final ones)."""

    user_input: Tensor
    item_input: Tensor

    def __init__(self, users: Tensor, items: Tensor, config: StudentConfig) -> None:
        super().__init__()
        self.register_buffer("user_input", users.detach().float())
        self.register_buffer("item_input", items.detach().float())

        def head(width: int) -> nn.Sequential:
            sizes = [width] + [config.dim] * config.layers
            layers: list[nn.Module] = []
            for inner, outer in itertools.pairwise(sizes):
                layers += [nn.Linear(inner, outer), nn.LeakyReLU(0.2)]
            return nn.Sequential(*layers[:-1])

        self.user_head, self.item_head = head(users.shape[1]), head(items.shape[1])

    def vectors(self, graph: BipartiteGraph) -> tuple[Tensor, Tensor]:
        """Final vectors; the graph is not used."""
        return self.user_head(self.user_input), self.item_head(self.item_input)

    def rows(self, users: Tensor, items: list[Tensor]) -> list[Tensor]:
        """The head's output rows."""
        return [self.user_head(self.user_input[users]), *(self.item_head(self.item_input[i]) for i in items)]


def build_student(
    config: StudentConfig, num_users: int, num_items: int, seed: int, frozen: tuple[Tensor, Tensor] | None = None
) -> Student | MlpStudent:
    """The student named by `config.kind`, with its seeded start.

    Args:
        frozen: The teacher's final user and item vectors, for warm starts and the mlp student.

    Raises:
        InputError: a warm start or an mlp student is asked for without a teacher.
    """
    if (config.warm_start or config.kind == "mlp") and frozen is None:
        raise InputError("student.warm_start and student.kind=mlp need a teacher: train one, or choose another start or kind")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(derive_seed(STREAM_INITIAL, seed, 2))
        if config.kind == "mlp":
            assert frozen is not None
            return MlpStudent(*frozen, config)
        student = (GcnStudent if config.kind == "gcn" else Student)(num_users, num_items, config, seed)
    if config.warm_start:
        assert frozen is not None
        users, items = project(*frozen, config.dim)
        with torch.no_grad():
            student.ids.user.copy_(users)
            student.ids.item.copy_(items)
    return student


def project(users: Tensor, items: Tensor, dim: int) -> tuple[Tensor, Tensor]:
    """Vectors of size `dim` whose dot products come closest to those of the given ones, over all users and items; see `projection_maps`."""
    u, i = users.double(), items.double()
    maps = projection_maps(u.T @ u, i.T @ i, dim)
    return (u @ maps[0]).to(users.dtype), (i @ maps[1]).to(items.dtype)


def projection_maps(users: Tensor, items: Tensor, dim: int) -> tuple[Tensor, Tensor]:
    """Maps A and B with (U A)(I B)^T the best approximation of U I^T of rank `dim` in least squares (Eckart and Young 1936).

    With U = Q_U R_U and I = Q_I R_I, Q orthonormal, and the singular value decomposition R_U R_I^T = P S W^T, A = R_U^-1 P S^½ and
    B = R_I^-1 W S^½. Sizes that are equal or larger lose nothing: the vectors stay as they are, with zeros behind them.

    Args:
        users, items: U^T U and I^T I, float64 [d, d].

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
    """R with X = Q R from X^T X, and its pseudo-inverse."""
    values, vectors = torch.linalg.eigh(gram)
    kept = values > 1e-12 * values.max().clamp(min=1e-300)
    values = torch.where(kept, values, 1.0)
    root = torch.where(kept, values.sqrt(), 0.0)[:, None] * vectors.T
    return root, vectors * torch.where(kept, values.rsqrt(), 0.0)
