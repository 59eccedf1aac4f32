"""Seconds of an epoch and of an evaluation, beside a plain transcription of the published step, in one process and one run.

    python benchmarks/speed.py --path DIR_OF_TIKTOK [--threads 2] [--repeats 3]

The peer does what the published training does: it runs the teacher over the full graph in every student step (sparse COO products, dropout
off so that both do the same work), takes every loss from it, and evaluates user by user in Python. Model sizes, batch and candidates are
the same on both sides. Medians over the repeats; the ratio is peer / ours.
"""

import argparse
import os
import statistics
import tempfile
import time

import numpy as np
import torch
import torch.nn.functional as F
from promptmm.core.config import DistillationConfig, EvaluationConfig, OptimizerConfig, StudentConfig, TeacherConfig
from promptmm.core.ranking import evaluate
from promptmm.distributed.config import ClusterConfig, LabelConfig
from promptmm.distributed.evaluation import masks
from promptmm.distributed.labels import Labeler, MaterialisedLabels, _block_name, labels_url
from promptmm.distributed.prompt_tuning import PromptTuner
from promptmm.distributed.resident import build_resident
from promptmm.distributed.student_training import Examples, StudentJob, StudentTrainer
from promptmm.distributed.teacher_artifact import write_revision
from promptmm.distributed.teacher_training import TeacherJob, TeacherTrainer
from promptmm.distributed.worker import Worker
from promptmm.graph_store.client import ItemShard
from promptmm.graph_store.config import SourceConfig
from promptmm.graph_store.dataset import open_dataset, write_dataset
from promptmm.graph_store.formats import load_catalog

BATCH, DIM, LAYERS, NEGATIVES = 1024, 64, 2, 10


class Peer:
    """The published step, transcribed plainly: sparse COO adjacency, full-graph teacher and student forward in every step."""

    def __init__(self, graph, features: dict[str, torch.Tensor]) -> None:
        users, items = graph.num_users, graph.num_items
        rows, columns = graph.users.rows, graph.users.columns
        values = (graph.user_scale[rows] * graph.item_scale[columns]).squeeze(1)
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

    def evaluate(self, held_out, exclude, k=20):
        u, i = self.light(self.tables["su"], self.tables["si"])
        u, i = u.detach().numpy(), i.detach().numpy()
        recalls = []
        for user in held_out.degrees.nonzero().squeeze(1).tolist():
            wanted = set(held_out.columns[held_out.pointers[user] : held_out.pointers[user + 1]].tolist())
            seen = set(exclude.columns[exclude.pointers[user] : exclude.pointers[user + 1]].tolist())
            scores = i @ u[user]
            ranked = [item for item in np.argsort(-scores).tolist() if item not in seen][:k]
            hits = [item in wanted for item in ranked]
            ideal = sum(1 / np.log2(n + 2) for n in range(min(k, len(wanted))))
            recalls.append((sum(hits) / len(wanted), sum(h / np.log2(n + 2) for n, h in enumerate(hits)) / ideal))
        return np.mean(recalls, 0)


def median_seconds(work, repeats: int) -> float:
    work()
    seconds = []
    for _ in range(repeats):
        started = time.perf_counter()
        work()
        seconds.append(time.perf_counter() - started)
    return statistics.median(seconds)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--path", required=True, help="the DiffMM folder of tiktok")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=3)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    os.environ.setdefault("DS_ACCELERATOR", "cpu")
    os.environ.update(LOCAL_RANK="0", RANK="0", WORLD_SIZE="1")  # DeepSpeed asks for them
    with tempfile.TemporaryDirectory() as folder:
        run(folder, options)


def run(folder: str, options) -> None:
    torch.distributed.init_process_group("gloo", store=torch.distributed.HashStore(), rank=0, world_size=1)
    source = SourceConfig(format="diffmm", path=options.path)
    write_dataset(f"{folder}/dataset", load_catalog(source), {})
    dataset = open_dataset(f"{folder}/dataset")
    from promptmm.distributed.student_training import train_graph

    graph, worker = train_graph(dataset), Worker(0, 1, torch.device("cpu"), ("here",))
    optimizer = OptimizerConfig(batch_size=BATCH)
    teacher = TeacherConfig(dim=DIM, layers=LAYERS, dropout=0.0, train=optimizer)
    loaded = {m: dataset.features(m) for m in dataset.modalities}
    shard = ItemShard(
        torch.arange(dataset.num_items), {m: x for m, (x, _) in loaded.items()}, {m: torch.from_numpy(p) for m, (_, p) in loaded.items()}
    )
    resident = build_resident(worker, teacher, graph, shard)
    cluster, evaluation = ClusterConfig(threads=options.threads), EvaluationConfig()
    trainer = TeacherTrainer(TeacherJob(folder, teacher, evaluation, cluster, 0, None, None), worker, resident)
    weights = trainer.weights()
    vectors = trainer.vectors()
    write_revision(
        f"{folder}/teacher", 0, vectors, {k.removeprefix("reduction.prompt."): t for k, t in weights.items() if ".prompt." in k}, {}
    )
    distill = DistillationConfig(num_uniform=NEGATIVES)
    student = StudentConfig(dim=DIM, layers=LAYERS, train=optimizer)
    num_examples = graph.users.columns.numel()
    job = StudentJob(folder, student, distill, LabelConfig(), evaluation, cluster, 0, num_examples, 0, 1, True, None, None)

    labeler, epochs = Labeler(job.label_job()), 2
    started, files = time.perf_counter(), {}
    for epoch in range(epochs):
        for block in range(labeler.job.num_blocks):
            files[_block_name(epoch, block)] = write_block(folder, labeler, epoch, block)
    labelling = (time.perf_counter() - started) / epochs
    from promptmm.core.storage import publish_manifest

    facts = {"revision": 0, "epochs": epochs, "num_examples": num_examples, "batch_size": BATCH}
    facts |= {"steps_a_block": labeler.job.steps_a_block, "num_candidates": distill.num_candidates}
    publish_manifest(labels_url(folder, 0), "labels", facts, files)

    ours, count = StudentTrainer(job, worker, graph), iter(range(1_000_000))
    stored = MaterialisedLabels(folder, job.label_job(worker), ours.modalities)
    inline = StudentTrainer(job, worker, graph)
    inline.tuner = PromptTuner(resident, trainer.engine.engine.module, weights["ids.user"], weights["ids.item"], distill)
    inline.tuner.reduction.requires_grad_(False).prompt.requires_grad_(True)
    examples = Examples(job.label_job(), graph, worker, inline.tuner)
    peer = Peer(graph, resident.features)
    held_out, exclude = masks(dataset, "test")
    users, items = ours.final_vectors()

    table = []
    peer_student = median_seconds(peer.student_epoch, options.repeats)
    table.append(
        (
            "student epoch, materialised labels",
            peer_student,
            median_seconds(lambda: ours.train_epoch(next(count), stored, None), options.repeats),
        )
    )
    table.append(
        (
            "student epoch, inline (prompt tuned too)",
            peer_student,
            median_seconds(lambda: inline.train_epoch(next(count), examples, None), options.repeats),
        )
    )
    inline.tuner.reduction.requires_grad_(True)
    table.append(
        (
            "teacher epoch",
            median_seconds(peer.teacher_epoch, options.repeats),
            median_seconds(lambda: trainer.train_epoch(next(count), None), options.repeats),
        )
    )
    table.append((
        f"full ranking of {int((held_out.degrees > 0).sum()):,} users",
        median_seconds(lambda: peer.evaluate(held_out, exclude), options.repeats),
        median_seconds(lambda: evaluate(users, items, held_out, exclude, [20]), options.repeats),
    ))  # fmt: skip
    print(
        f"| {options.threads} threads, batch {BATCH}, d = {DIM}, {LAYERS} layers, {NEGATIVES} negatives a list | peer, s | ours, s | ratio |"
    )
    print("|---|---:|---:|---:|")
    for name, theirs, mine in table:
        print(f"| {name} | {theirs:.2f} | {mine:.3f} | {theirs / mine:.1f} |")
    print(f"\nlabelling an epoch (one process, written to disk): {labelling:.2f} s")


def write_block(folder: str, labeler: Labeler, epoch: int, block: int) -> dict:
    import hashlib

    import pyarrow as pa
    from promptmm.core.storage import join, write_bytes

    sink, table = pa.BufferOutputStream(), labeler.table(epoch, block)
    with pa.ipc.new_file(sink, table.schema) as writer:
        writer.write_table(table)
    data = sink.getvalue().to_pybytes()
    write_bytes(join(labels_url(folder, 0), _block_name(epoch, block)), data)
    return {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}


if __name__ == "__main__":
    main()
