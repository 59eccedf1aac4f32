"""Seconds of an epoch and of an evaluation, beside a plain transcription of the published step, in one process and one run.

    python benchmarks/speed.py --path DIR_OF_TIKTOK [--threads 2] [--repeats 3]

The peer does what the published training does: it runs the teacher over the full graph in every student step (sparse COO products, dropout
off so that both do the same work), takes every loss from it, and evaluates user by user in Python (in one process: the published pool of
processes changes the machine, not the work). Model sizes, batch and candidates are the same on both sides. Medians over the repeats; the
ratio is peer / ours.
"""

import argparse
import dataclasses
import heapq
import statistics
import tempfile
import time

import inprocess
import numpy as np
import torch
import torch.nn.functional as F
from promptmm.core.ranking import evaluate
from promptmm.distributed.loop.selection import Selection
from promptmm.jobs.planning.rates import seconds_of
from promptmm.jobs.settings import load_settings

BATCH, DIM, LAYERS, NEGATIVES = 1024, 64, 2, 10


class Peer:
    """The published step, transcribed plainly: sparse COO adjacency, full-graph teacher and student forward in every step."""

    def __init__(self, graph, features: dict[str, torch.Tensor]) -> None:
        users, items = graph.num_users, graph.num_items
        rows, columns = graph.users.rows, graph.users.columns
        values = graph.user_weights
        self.random = np.random.default_rng(0)
        self.ui = torch.sparse_coo_tensor(torch.stack([rows, columns]), values, (users, items)).coalesce()
        self.iu = self.ui.t().coalesce()
        self.features = features
        self.towers = torch.nn.ModuleDict({m: torch.nn.Linear(x.shape[1], DIM) for m, x in features.items()})
        tables = {"tu": users, "ti": items, "su": users, "si": items}
        self.tables = torch.nn.ParameterDict({k: torch.nn.Parameter(0.1 * torch.randn(n, DIM)) for k, n in tables.items()})
        self.teacher = torch.optim.Adam([*self.towers.parameters(), self.tables["tu"], self.tables["ti"]], lr=1e-3)
        self.student = torch.optim.Adam([self.tables["su"], self.tables["si"]], lr=1e-3)
        self.train, self.num_items = (rows, columns), items
        self.seen = [set(graph.users.columns[a:b].tolist()) for a, b in zip(graph.users.pointers[:-1], graph.users.pointers[1:])]

    def light(self, u, i):
        us, it = [u], [i]
        for _ in range(LAYERS):
            u, i = torch.sparse.mm(self.ui, i), torch.sparse.mm(self.iu, u)
            us.append(u)
            it.append(i)
        return torch.stack(us).mean(0), torch.stack(it).mean(0)

    def teacher_forward(self):
        u, i = self.light(self.tables["tu"], self.tables["ti"])
        modal = []
        for m, x in self.features.items():
            mu = torch.sparse.mm(self.ui, self.towers[m](x))
            mi = torch.sparse.mm(self.iu, mu)
            u, i = u + F.normalize(mu), i + F.normalize(mi)
            modal.append((mu, mi))
        return u, i, modal

    def negatives(self, users, count):
        drawn = torch.empty(len(users), count, dtype=torch.long)
        for row, user in enumerate(users.tolist()):  # the published sampler: one Python loop, rejection against a set
            for column in range(count):
                item = self.random.integers(self.num_items)
                while item in self.seen[user]:
                    item = self.random.integers(self.num_items)
                drawn[row, column] = item
        return drawn

    def bpr(self, u, i, users, pos, neg):
        return -F.logsigmoid((u[users] * (i[pos] - i[neg])).sum(1)).mean()

    def teacher_epoch(self):
        for batch in torch.randperm(len(self.train[0])).split(BATCH):
            users, pos = self.train[0][batch], self.train[1][batch]
            neg = self.negatives(users, 1)[:, 0]
            u, i, modal = self.teacher_forward()
            loss = self.bpr(u, i, users, pos, neg) + sum(self.bpr(mu, mi, users, pos, neg) for mu, mi in modal)
            self.teacher.zero_grad()
            loss.backward()
            self.teacher.step()

    def student_epoch(self):
        for batch in torch.randperm(len(self.train[0])).split(BATCH):
            users, pos = self.train[0][batch], self.train[1][batch]
            candidates = torch.cat([pos[:, None], self.negatives(users, NEGATIVES)], 1)
            with torch.no_grad():
                tu, ti, modal = self.teacher_forward()
            su, si = self.light(self.tables["su"], self.tables["si"])
            s = (su[users][:, None] * si[candidates]).sum(2)
            t = (tu[users][:, None] * ti[candidates]).sum(2)
            loss = F.softplus(s[:, 1] - s[:, 0]).mean()
            loss = loss + F.binary_cross_entropy_with_logits(s[:, :1] - s[:, 1:], torch.sigmoid(t[:, :1] - t[:, 1:]))
            for mu, mi in modal:
                y = (mu[users][:, None] * mi[candidates]).sum(2)
                loss = loss + F.kl_div(F.log_softmax(s, 1), F.softmax(y, 1), reduction="batchmean")
                loss = loss + (1 - F.cosine_similarity(si[pos], mi[pos])).mean()
            self.student.zero_grad()
            loss.backward()
            self.student.step()

    def evaluate(self, held_out, exclude, rank, k=20):
        """Recall, NDCG, precision and hit ratio, one user after the other; `rank(scores, seen, k)` lists a user's best items."""
        u, i = self.light(self.tables["su"], self.tables["si"])
        u, i = u.detach(), i.detach()
        found = []
        for block in held_out.degrees.nonzero().squeeze(1).split(2 * BATCH):
            for user, scores in zip(block.tolist(), (u[block] @ i.T).numpy()):
                wanted = set(held_out.columns[held_out.pointers[user] : held_out.pointers[user + 1]].tolist())
                seen = set(exclude.columns[exclude.pointers[user] : exclude.pointers[user + 1]].tolist())
                hits = [item in wanted for item in rank(scores, seen, k)]
                ideal = sum(1 / np.log2(n + 2) for n in range(min(k, len(wanted))))
                ndcg = sum(h / np.log2(n + 2) for n, h in enumerate(hits)) / ideal
                found.append((sum(hits) / len(wanted), ndcg, sum(hits) / k, any(hits)))
        return np.mean(found, 0)


def rank_by_heap(scores, seen: set[int], k: int) -> list[int]:
    """As published: the unseen items' scores in a dictionary, and a heap of the k largest."""
    score_of = {item: scores[item] for item in set(range(len(scores))) - seen}
    return heapq.nlargest(k, score_of, key=score_of.get)


def rank_by_sort(scores, seen: set[int], k: int) -> list[int]:
    """A stronger peer: one numpy sort a user."""
    return [item for item in np.argsort(-scores).tolist() if item not in seen][:k]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--path", required=True, help="the DiffMM folder of tiktok")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=3)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        run(folder, options)


def run(folder: str, options) -> None:
    sizes = [f"{side}.dim={DIM}" for side in ("teacher", "student")] + [f"{side}.layers={LAYERS}" for side in ("teacher", "student")]
    batches = [f"{side}.train.batch_size={BATCH}" for side in ("teacher", "student")]
    more = [f"distill.num_uniform={NEGATIVES}", "teacher.dropout=0", "source.format=diffmm", f"source.path={options.path}"]
    settings = load_settings(None, [*sizes, *batches, *more, f"run.dir={folder}", f"cluster.threads={options.threads}"])
    worker = inprocess.start(options.threads)
    dataset = inprocess.prepare(settings)
    trainer = inprocess.teacher_trainer(settings, dataset, worker)
    trainer.keep()
    trainer.task.write(trainer.output(), Selection(None, 1))
    started, epochs = time.perf_counter(), 2
    inprocess.write_labels(settings, dataset, epochs)
    labelling = (time.perf_counter() - started) / epochs

    ours, count = inprocess.student_trainer(settings, dataset, worker), iter(range(1_000_000))
    ours.open(range(1))  # the materialised labels
    tuned = dataclasses.replace(settings, distill=dataclasses.replace(settings.distill, regime="inline"))
    inline = inprocess.student_trainer(tuned, dataset, worker, trainer.catalog)
    peer = Peer(trainer.catalog.graph, trainer.catalog.features)
    held_out, masked = inprocess.masks(dataset, "test")
    exclude = masked.select(torch.arange(dataset.num_users))
    with torch.no_grad():
        users, items = ours.task.vectors(ours.view())["final"]

    def compare(name: str, theirs, mine) -> None:
        peer_seconds, seconds = (statistics.median(seconds_of(work, options.repeats)) for work in (theirs, mine))
        print(f"| {name} | {peer_seconds:.2f} | {seconds:.3f} | {peer_seconds / seconds:.1f} |", flush=True)

    what = f"{options.threads} threads, batch {BATCH}, d = {DIM}, {LAYERS} layers, {NEGATIVES} negatives a list"
    print(f"| {what} | peer, s | ours, s | ratio |\n|---|---:|---:|---:|")
    compare("student epoch, materialised labels", peer.student_epoch, lambda: inprocess.train_epoch(ours, next(count)))
    compare("student epoch, inline (prompt tuned too)", peer.student_epoch, lambda: inprocess.train_epoch(inline, next(count)))
    compare("teacher epoch", peer.teacher_epoch, lambda: inprocess.train_epoch(trainer, next(count)))
    num_users = int((held_out.degrees > 0).sum())
    for how, rank in (("a heap over a dictionary a user, as published", rank_by_heap), ("a numpy sort a user", rank_by_sort)):
        compare(
            f"full ranking of {num_users:,} users; peer: {how}",
            lambda rank=rank: peer.evaluate(held_out, exclude, rank),
            lambda: evaluate(users, items, held_out, exclude, [20]),
        )
    print(f"\nlabelling an epoch (one process, written to disk): {labelling:.2f} s")


if __name__ == "__main__":
    main()
