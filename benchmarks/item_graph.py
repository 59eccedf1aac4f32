"""Time and memory of the exact item graph: nearest neighbours by cosine, and a propagation with its gradient.

    python benchmarks/item_graph.py [--sizes 20000 50000 500000] [--dim 64] [--neighbours 10] [--share 1.0] [--threads 1] [--device cuda]

Rows are random normal ones: the search looks at every pair, whatever they are. --share looks for the neighbours of that share of the rows
only, among all rows, as one of several workers does: its time a million pairs is that of the whole search. Times are of the process's CPU,
which other work on the machine changes little, or of the clock on a GPU. Memory is the process's anonymous and shared pages at their
highest during the search, without what it had when the rows were there; on a GPU, torch's own peak.
"""

import argparse
import time

import memory
import torch
from promptmm.core.item_graph import ItemGraph, nearest_neighbours


def seconds_now(device: torch.device) -> float:
    """Of this process's CPU, or of the clock when the GPU has done what it was asked to."""
    if device.type != "cuda":
        return time.process_time()
    torch.cuda.synchronize()
    return time.perf_counter()


def search(rows: torch.Tensor, options: argparse.Namespace) -> tuple[float, float]:
    """Seconds of the search, and MiB that it took beside the rows."""
    wanted = slice(0, max(1, int(options.share * rows.shape[0])))
    cuda = rows.device.type == "cuda"
    if cuda:
        torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated() if cuda else 0
    peak = memory.Peak(memory.anonymous_and_shared, 0.01)
    started = seconds_now(rows.device)
    nearest_neighbours(rows, options.neighbours, options.memory_mib, wanted)
    seconds = seconds_now(rows.device) - started
    return seconds, (torch.cuda.max_memory_allocated() - before) / 2**20 if cuda else peak.highest - peak.base


def propagate(rows: torch.Tensor, k: int) -> float:
    """Seconds of a propagation with the gradients of rows and similarities, over lists of random neighbours; the median of five."""
    ids = torch.randint(rows.shape[0], (rows.shape[0], k), device=rows.device)
    graph = ItemGraph.from_neighbours(ids, torch.rand(ids.shape, device=rows.device) + 0.1)
    x, seconds = rows.clone().requires_grad_(), []
    for _ in range(5):
        started = seconds_now(rows.device)
        graph.with_similarities(graph.similarities(x)).propagate(x).sum().backward()
        seconds.append(seconds_now(rows.device) - started)
    return sorted(seconds)[2]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sizes", type=int, nargs="*", default=[20_000, 50_000])
    parser.add_argument("--dim", type=int, default=64)
    parser.add_argument("--neighbours", type=int, default=10)
    parser.add_argument("--memory-mib", type=int, default=256)
    parser.add_argument("--share", type=float, default=1.0)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--device", default="cpu")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    print("| items | share | search, s | ms a million pairs | MiB beside the rows | propagation and gradients, ms |")
    print("|---:|---:|---:|---:|---:|---:|", flush=True)
    nearest_neighbours(torch.randn(500, options.dim, device=options.device), 1)  # what the first call loads is not the search's
    for size in options.sizes:
        rows = torch.randn(size, options.dim, generator=torch.Generator().manual_seed(0)).to(options.device)
        seconds, mib = search(rows, options)
        pairs = options.share * size**2 / 1e6
        ms = 1e3 * propagate(rows, options.neighbours)
        print(f"| {size:,} | {options.share:g} | {seconds:.1f} | {1e3 * seconds / pairs:.2f} | {mib:,.0f} | {ms:.1f} |", flush=True)


if __name__ == "__main__":
    main()
