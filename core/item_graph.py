"""Builds item-item graphs of exact nearest neighbours by cosine, and propagates over them with normalised similarities.

The graph is LATTICE's (Zhang et al., MM 2021, initial graph structures): S_ij = cos(x_i, x_j) where j is one of the k items most similar to
i, else 0, and D^-1/2 S D^-1/2 with D_ii = Σ_j S_ij. An item is not its own neighbour, since it would always be the nearest one.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from .autograd import Context, Gradients
from .errors import InputError
from .graph import Csr, NeighbourSum, edge_products, weighted_sum
from .top_k import top_k


def nearest_neighbours(rows: Tensor, k: int, memory_mib: int = 256, wanted: slice | None = None) -> tuple[Tensor, Tensor]:
    """Finds for each row the k other rows with the highest cosine, exactly, without a [num_rows, num_rows] matrix.

    Of equal similarities the lower index comes first. A row of zeros (an item without features) has no neighbours, and is no neighbour of
    another row.

    Args:
        rows: float [num_rows, d], on any device.
        k: The number of neighbours for a row.
        memory_mib: Bound on one block of similarities, MiB; beside it there are two float32 copies of the rows.
        wanted: The rows whose neighbours are searched, all by default; several workers may so share the work.

    Returns:
        Indices int64 [wanted rows, k], best first, and similarities float32 [wanted rows, k]. Where there are fewer than k other rows the
        last places hold index -1 and similarity 0.

    Raises:
        InputError: k is below 1.
    """
    if k < 1:
        raise InputError(f"{k} neighbours of an item: ask for at least 1")
    first, last, _ = (wanted or slice(None)).indices(rows.shape[0])
    unit = F.normalize(rows.detach().float(), dim=1, eps=torch.finfo(torch.float32).tiny)
    present = unit.any(1).nonzero().squeeze(1)
    places = ((present >= first) & (present < last)).nonzero().squeeze(1)  # where the wanted rows stand in `present`
    ids = torch.full((last - first, k), -1, dtype=torch.int64, device=rows.device)
    similarities = torch.zeros(last - first, k, device=rows.device)
    kept = min(k, present.numel() - 1)
    if kept > 0 and places.numel():
        unit = unit[present]
        itself = Csr(torch.arange(places.numel() + 1, device=rows.device), places, present.numel())
        for block, values, columns in top_k(unit[places], unit, kept, itself, memory_mib):
            at = present[places[block]] - first
            ids[at, :kept], similarities[at, :kept] = present[columns], values
    return ids, similarities


@dataclass(frozen=True)
class ItemGraph:
    """Holds D^-1/2 S D^-1/2 over lists of neighbours; propagation passes gradients to the rows and to the weights.

    Attributes:
        neighbours: The neighbours of each item.
        weights: The matrix's entry for every edge in the order of `neighbours`, float32 [num_edges].
        transposed: For each item the items that have it as a neighbour.
        places: The place of each edge of `transposed` in `neighbours`, int64 [num_edges].
        transposed_weights: The weights in the order of `transposed`, float32 [num_edges], without gradients.
    """

    neighbours: Csr
    weights: Tensor
    transposed: Csr
    places: Tensor
    transposed_weights: Tensor

    @staticmethod
    def from_neighbours(ids: Tensor, similarities: Tensor) -> "ItemGraph":
        """Builds the graph from the ids and similarities that `nearest_neighbours` returns for all items, [num_items, k] each.

        A similarity that is not positive makes no edge, since D could otherwise have entries without a real square root.
        """
        columns, order = ids.sort(1)
        values = similarities.gather(1, order)
        kept = (columns >= 0) & (values > 0)
        pointers = torch.cat([kept.new_zeros(1, dtype=torch.int64), kept.sum(1).cumsum(0)])
        neighbours = Csr(pointers, columns[kept], ids.shape[0])
        transposed, places = neighbours.transpose()
        weights = normalised(neighbours, values[kept])
        return ItemGraph(neighbours, weights, transposed, places, weights.detach()[places])

    @property
    def num_items(self) -> int:
        return self.neighbours.num_rows

    def to(self, device: torch.device | str) -> "ItemGraph":
        tensors = (self.weights, self.transposed, self.places, self.transposed_weights)
        return ItemGraph(self.neighbours.to(device), *(t.to(device) for t in tensors))  # type: ignore[arg-type]

    def with_similarities(self, similarities: Tensor) -> "ItemGraph":
        """Returns the graph with the same neighbours and other similarities; similarities below 0 count as 0.

        Args:
            similarities: float [num_edges], in the order of `neighbours`.
        """
        weights = normalised(self.neighbours, similarities.clamp(min=0))
        return ItemGraph(self.neighbours, weights, self.transposed, self.places, weights.detach()[self.places])

    def similarities(self, rows: Tensor) -> Tensor:
        """Computes <x_i, x_j> for every edge, [num_edges], from rows [num_items, d] (of unit length for cosines); differentiable."""
        return _Similarities.apply(rows, self)

    def propagate(self, x: Tensor) -> Tensor:
        """Computes D^-1/2 S D^-1/2 x, [num_items, d], from x [num_items, d]."""
        return NeighbourSum.apply(x, self.neighbours, self.weights, self.transposed, self.transposed_weights)


def normalised(neighbours: Csr, similarities: Tensor) -> Tensor:
    """Computes s_ij / sqrt(D_ii D_jj) with D_ii = Σ_j s_ij, and 0 where D_ii or D_jj is 0; differentiable.

    Args:
        neighbours: The edges.
        similarities: s, float [num_edges], not negative.

    Returns:
        float [num_edges].
    """
    rows = neighbours.rows
    degrees = similarities.new_zeros(neighbours.num_rows).index_add(0, rows, similarities)
    connected = degrees > 0
    scale = torch.where(connected, torch.where(connected, degrees, 1.0).rsqrt(), 0.0)
    return similarities * scale.index_select(0, rows) * scale.index_select(0, neighbours.columns)


class _Similarities(torch.autograd.Function):
    """Computes s_rc = <x[r], x[c]> over the edges; the gradient of x sums over the lists of neighbours and the transposed lists."""

    @staticmethod
    def forward(ctx: Context, x: Tensor, graph: ItemGraph) -> Tensor:
        ctx.graph = graph
        ctx.save_for_backward(x)
        return edge_products(x, x, graph.neighbours)

    @staticmethod
    def backward(ctx: Context, grad: Tensor) -> Gradients:
        (x,), graph = ctx.saved_tensors, ctx.graph
        return weighted_sum(x, graph.neighbours, grad) + weighted_sum(x, graph.transposed, grad[graph.places]), None
