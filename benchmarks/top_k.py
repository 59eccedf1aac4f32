"""Exact top-k lists of users over all items, beside faiss's flat index on the same vectors.

    python benchmarks/top_k.py [--items 100000 1000000] [--k 20 100] [--threads 1 2] [--users 4096] [--dim 64] [--seen 50] [--repeats 5]
        [--alone]

The peer comes with `pip install faiss-cpu`. Vectors are random normal ones, of users in one call. `all scores` is the way in which small
catalogs and few users are ranked: every score is sorted out. In the three columns of unseen items every user has --seen items that may
not be in its list: faiss ranks as many more items, and those that the user has seen are dropped. All calls take turns, and a figure is the
median over the repeats. The last column is the share of places that have the same item in both lists, the mean of lists with and without
seen items: two products round scores that are nearly equal otherwise.

With --alone the calls are of a single user each, as a service makes them: milliseconds of a list, the median over 200 users, 50 in a turn.
"""

import argparse
import statistics
import time
from collections.abc import Callable
from functools import partial

import faiss
import numpy as np
import torch
from promptmm.core import top_k as kernel
from promptmm.core.graph import Csr
from promptmm.core.item_parts import ItemPart, rank_parts

Lists = np.ndarray  # item indices, int64 [users, k]


def ours(users: torch.Tensor, items: torch.Tensor, k: int, seen: Csr | None = None) -> Lists:
    return torch.cat([ranked for _, _, ranked in kernel.top_k(users, items, k, seen)]).numpy()


def all_scores(users: torch.Tensor, items: torch.Tensor, k: int) -> Lists:
    return torch.cat([ranked for _, _, ranked in kernel._top_k_of_rows(users, items, k, None, 256)]).numpy()


def without_seen(lists: Lists, seen: np.ndarray, k: int) -> Lists:
    """The first k items of each list that are not in the same row of `seen`, which is ascending."""
    base = np.arange(len(lists))[:, None] * (1 << 32)
    known = np.searchsorted((base + seen).ravel(), base + lists).clip(max=seen.size - 1)
    is_new = (base + seen).ravel()[known] != base + lists
    places = np.argsort(~is_new, axis=1, kind="stable")[:, :k]
    return np.take_along_axis(lists, places, 1)


def medians(calls: list[Callable[[], Lists]], repeats: int) -> list[float]:
    """Seconds of each call, which take turns."""
    seconds: list[list[float]] = [[] for _ in calls]
    for _ in range(repeats):
        for number, call in enumerate(calls):
            started = time.perf_counter()
            call()
            seconds[number].append(time.perf_counter() - started)
    return [statistics.median(each) for each in seconds]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--items", type=int, nargs="*", default=[100_000, 1_000_000])
    parser.add_argument("--k", type=int, nargs="*", default=[20, 100])
    parser.add_argument("--threads", type=int, nargs="*", default=[1, 2])
    parser.add_argument("--users", type=int, default=4096)
    parser.add_argument("--dim", type=int, default=64)
    parser.add_argument("--seen", type=int, default=50)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--alone", action="store_true")
    options = parser.parse_args()
    if options.alone:
        print("| items | k | threads | faiss, ms | ours | ratio |\n|---:|---:|---:|---:|---:|---:|", flush=True)
        for num_items in options.items:
            compare_alone(num_items, options)
        return
    print("| items | k | threads | faiss, us a user | ours | ratio | all scores: ratio | unseen items: faiss | ours | ratio | same items |")
    print("|---:|---:|---:|---:|---:|---:|---:|---:|---:|---:|---:|", flush=True)
    for num_items in options.items:
        compare(num_items, options)


def compare_alone(num_items: int, options: argparse.Namespace) -> None:
    """Prints the rows of a catalog, of requests for one user."""
    generator = torch.Generator().manual_seed(0)
    users, items = (torch.randn(n, options.dim, generator=generator) for n in (200, num_items))
    index, part = faiss.IndexFlatIP(options.dim), ItemPart(items)
    index.add(items.numpy())

    def peer(user: torch.Tensor, k: int) -> object:
        return index.search(user.numpy(), k)

    def ours_alone(user: torch.Tensor, k: int) -> object:
        return rank_parts(user, [part], k, None, None)

    for k in options.k:
        for threads in options.threads:
            torch.set_num_threads(threads)
            faiss.omp_set_num_threads(threads)
            seconds: list[list[float]] = [[], []]
            for turn in users.split(50):  # what one call reads stays in the caches for the next, as in a service
                for rank, found in zip((peer, ours_alone), seconds):
                    found += [medians([partial(rank, user, k)], 1)[0] for user in turn.split(1)]
            theirs, own = (1e3 * statistics.median(each) for each in seconds)
            print(f"| {num_items:,} | {k} | {threads} | {theirs:.2f} | {own:.2f} | {theirs / own:.2f} |", flush=True)


def compare(num_items: int, options: argparse.Namespace) -> None:
    """Prints the rows of a catalog."""
    generator = torch.Generator().manual_seed(0)
    users, items = (torch.randn(n, options.dim, generator=generator) for n in (options.users, num_items))
    seen = torch.randint(num_items, (options.users, options.seen), generator=generator).sort(1).values
    exclude = Csr(torch.arange(options.users + 1) * options.seen, seen.reshape(-1), num_items)
    index, rows = faiss.IndexFlatIP(options.dim), users.numpy()
    index.add(items.numpy())

    def peer(k: int) -> Lists:
        return index.search(rows, k)[1]

    def peer_unseen(k: int) -> Lists:
        return without_seen(index.search(rows, k + options.seen)[1], seen.numpy(), k)

    for k in options.k:
        calls = [
            partial(peer, k),
            partial(ours, users, items, k),
            partial(all_scores, users, items, k),
            partial(peer_unseen, k),
            partial(ours, users, items, k, exclude),
        ]
        same = np.mean([np.mean(calls[0]() == calls[1]()), np.mean(calls[3]() == calls[4]())])
        for threads in options.threads:
            torch.set_num_threads(threads)
            faiss.omp_set_num_threads(threads)
            theirs, own, plain, unseen, own_unseen = (1e6 / options.users * each for each in medians(calls, options.repeats))
            print(
                f"| {num_items:,} | {k} | {threads} | {theirs:,.0f} | {own:,.0f} | {theirs / own:.2f} | {theirs / plain:.2f} | "
                f"{unseen:,.0f} | {own_unseen:,.0f} | {unseen / own_unseen:.2f} | {same:.3%} |",
                flush=True,
            )


if __name__ == "__main__":
    main()
