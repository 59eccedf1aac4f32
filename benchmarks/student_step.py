"""Milliseconds of a step of a table student that learns lists by user, beside plain torch, in one process and one run.

    python benchmarks/student_step.py [--threads 1] [--repeats 7]

The peer gathers the item vectors of all candidates, multiplies and sums them, leaves gradients to autograd and steps with torch.optim.Adam
as it comes. Ours are `candidate_scores` and `fused_adam`. Both learn from the same lists, on random tables of the sizes of three catalogs;
medians over the repeats, which take turns; the ratio is peer / ours.
"""

import argparse
import itertools
import statistics
import time
from collections.abc import Callable

import torch
from promptmm.core.losses import score_loss
from promptmm.core.scoring import candidate_scores
from promptmm.distributed.engines.adam import fused_adam
from torch import Tensor

CATALOGS = {  # users, items, columns, lists in a step
    "TikTok": (9_308, 6_710, 128, 2_048),
    "Sports": (35_598, 18_357, 256, 2_048),
    "Gowalla": (29_858, 40_981, 256, 4_096),
}
CANDIDATES, WARM_UP = 20, 2
Scores = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]


def plain_scores(users: Tensor, items: Tensor, rows: Tensor, candidates: Tensor) -> Tensor:
    return (users[rows][:, None] * items[candidates]).sum(-1)


class Student:
    """Two tables with their optimizer."""

    def __init__(self, sizes: tuple[int, int, int, int], scores: Scores, adam: Callable[[list[Tensor]], torch.optim.Optimizer]) -> None:
        self.sizes, self.scores, generator = sizes, scores, torch.Generator().manual_seed(0)
        self.tables = [torch.nn.Parameter(0.1 * torch.randn(count, sizes[2], generator=generator)) for count in sizes[:2]]
        self.optimizer = adam(list(self.tables))

    def step(self, number: int) -> list[float]:
        """Milliseconds of scores and loss, of the backward pass and of the optimizer."""
        (users, items, _, batch), generator = self.sizes, torch.Generator().manual_seed(number)
        rows = torch.randint(users, (batch,), generator=generator)
        candidates = torch.randint(items, (batch, CANDIDATES), generator=generator)
        teacher = torch.randn(batch, CANDIDATES, generator=generator)
        marks = [time.perf_counter()]
        loss = score_loss(self.scores(*self.tables, rows, candidates), teacher, 2.0, batch)
        marks.append(time.perf_counter())
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        marks.append(time.perf_counter())
        self.optimizer.step()
        marks.append(time.perf_counter())
        return [1e3 * (end - start) for start, end in itertools.pairwise(marks)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=7)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    print("| | peer: scores + backward + Adam, ms | ours, ms | ratio | largest difference of a weight |")
    print("|---|---:|---:|---:|---:|")
    for name, sizes in CATALOGS.items():
        peer = Student(sizes, plain_scores, lambda tables: torch.optim.Adam(tables, lr=0.003))
        ours = Student(sizes, candidate_scores, lambda tables: fused_adam([{"params": tables, "lr": 0.003}]))
        seconds = [[student.step(number) for student in (peer, ours)] for number in range(WARM_UP + options.repeats)][WARM_UP:]
        medians = [[statistics.median(step[which][part] for step in seconds) for part in range(3)] for which in range(2)]
        shown = [" + ".join(f"{part:.1f}" for part in parts) for parts in medians]
        ratio = sum(medians[0]) / sum(medians[1])
        apart = max(float((a - b).abs().max()) for a, b in zip(peer.tables, ours.tables))
        print(f"| {name} ({sizes[0]:,} users, {sizes[1]:,} items, d = {sizes[2]}) | {shown[0]} | {shown[1]} | {ratio:.1f} | {apart:.0e} |")


if __name__ == "__main__":
    main()
