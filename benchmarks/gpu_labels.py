"""Rankings and labels on a GPU: the best items of users beside torch.topk, and whole rankings and labels beside the same on the CPU.

    python benchmarks/gpu_labels.py [--users 100000] [--items 100000] [--threads 8] [--device cuda]

First users' best 20 and 100 of random items, d = 64: ours, and plain torch: a product of as many users as fit 1 GiB of scores, then
torch.topk of it. Lists are compared with those of the CPU in float64, and items of equal vectors have to come in their order. Then the
rankings (depth 100) of a generated catalog of benchmarks/labels.py with two modalities, and its labels by example and by user, made and
written on the device and on the CPU with --threads. Seconds are medians over three repeats for the lists, of one run for the rest.
"""

import argparse
import statistics
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import labels as of_labels
import torch
from promptmm.core.top_k import top_k
from promptmm.distributed.labels.rankings import DEVICE_SCORES_MIB

PEER_SCORES = 1 << 28


def peer(users: torch.Tensor, items: torch.Tensor, k: int) -> torch.Tensor:
    rows = max(1, PEER_SCORES // len(items))
    return torch.cat([torch.topk(part @ items.T, k, dim=1).indices for part in users.split(rows)])


def ours(users: torch.Tensor, items: torch.Tensor, k: int) -> torch.Tensor:
    return torch.cat([ranked for _, _, ranked in top_k(users, items, k, memory_mib=DEVICE_SCORES_MIB)])


def seconds(call, device: str, repeats: int = 3) -> float:
    found = []
    for _ in range(repeats + 1):  # the first one is not counted
        started = time.perf_counter()
        call()
        if device == "cuda":
            torch.cuda.synchronize()
        found.append(time.perf_counter() - started)
    return statistics.median(found[1:])


def compare_lists(device: str) -> None:
    generator = torch.Generator().manual_seed(0)
    print("| items | k | torch, us a user | ours | ratio | places as in float64 |\n|---:|---:|---:|---:|---:|---:|", flush=True)
    for num_items in (100_000, 1_000_000):
        users, items = (torch.randn(n, 64, generator=generator) for n in (16_384, num_items))
        exact = torch.topk(users[:256].double() @ items.double().T, 100, dim=1).indices
        here = users.to(device), items.to(device)
        for k in (20, 100):
            theirs, own = (1e6 / len(users) * seconds(lambda rank=rank, here=here, k=k: rank(*here, k), device) for rank in (peer, ours))
            same = (ours(here[0][:256], here[1], k).cpu() == exact[:, :k]).float().mean()
            print(f"| {num_items:,} | {k} | {theirs:.1f} | {own:.1f} | {theirs / own:.2f} | {same:.3%} |", flush=True)
    for count in (5, 130, 1003, 100_001):
        twins = torch.randn(1, 64, generator=generator).repeat(count, 1).to(device)
        for size in (1, 2, 70):
            ranked = ours(torch.randn(size, 64, generator=generator).to(device), twins, min(count, 50))
            assert (ranked.cpu() == torch.arange(ranked.shape[1])).all(), (
                f"{count} items of equal vectors are out of order for {size} users"
            )


def measure(folder: Path, dataset, job) -> dict[str, float]:
    """Makes rankings and labels on a job's device; returns users or lists a second."""
    from promptmm.core.storage import remove
    from promptmm.distributed.labels.files import labels_url
    from promptmm.distributed.labels.labeler import label_facts, labels_left, open_labeler, work_of
    from promptmm.distributed.labels.rankings import rank_here, rankings_url

    remove(rankings_url(job.rankings))
    found = {"rankings, users": dataset.num_users / of_labels.seconds(lambda: rank_here(job.rankings, dataset))}
    for name, by in (("labels by example, lists", "examples"), ("labels by user, users", "users")):
        own = replace(job, by=by, pool=200, scores="uint8")
        own = own if by == "users" else replace(own, num_examples=min(own.num_examples, 8 * own.steps_a_block * own.batch_size))
        work, url = work_of(own, dataset, range(1)), labels_url(str(folder), 0)
        labels_left(own, url, work, {**label_facts(own, 1, {}), "anew": time.time()})
        labeler = open_labeler(own, dataset)
        spent = of_labels.seconds(lambda work=work, url=url, labeler=labeler: [labeler.write(url, item) for item in work])
        found[name] = (dataset.num_users if by == "users" else own.num_examples) / spent
    return found


def main() -> None:
    """Prints both tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--users", type=int, default=100_000)
    parser.add_argument("--items", type=int, default=100_000)
    parser.add_argument("--dim", type=int, default=64)
    parser.add_argument("--threads", type=int, default=8)
    parser.add_argument("--device", default="cuda")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    compare_lists(options.device)
    with tempfile.TemporaryDirectory() as name:
        dataset, _, job = of_labels.build(Path(name), options)
        measure(Path(name), dataset, replace(job, device=options.device))  # warms up
        there, here = (measure(Path(name), dataset, replace(job, device=device)) for device in (options.device, "cpu"))
    print(f"\n| a second | {options.device} | CPU, {options.threads} threads | ratio |\n|---|---:|---:|---:|")
    for what, rate in there.items():
        print(f"| {what} | {rate:,.0f} | {here[what]:,.0f} | {rate / here[what]:.1f} |")


if __name__ == "__main__":
    main()
