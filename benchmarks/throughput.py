"""Steps a second of the sampled teacher on two hosts, beside DGL's own way, in one run.

    sudo python benchmarks/throughput.py [--users 40000] [--items 20000] [--dim 1024] [--batch 1024] [--fan-out 10] [--repeats 3]

Two hosts are simulated with network namespaces (root, iproute2), one part of the graph, one DGL server and one worker with one torch thread
on each. The peer is DGL's own way: DistEdgeDataLoader with a NeighborSampler and a Uniform negative sampler, raw float32 feature rows
pulled through a DistTensor, DistEmbedding with DGL's SparseAdam. Both sides have the same model (two layers of LightGCN, one linear
reduction layer with its propagation, BPR on both), fan-outs, global batch and partition.
"""

import argparse
import json
import statistics
import tempfile
from pathlib import Path

import numpy as np
import two_hosts

DIM, LEARNING_RATE = 32, 0.01


def make_graph(folder: Path, options) -> None:
    """A catalog with popular items and one modality, cut in two."""
    from promptmm.graph_store.catalog import Catalog, ids_of
    from promptmm.graph_store.config import GraphConfig
    from promptmm.graph_store.dataset import open_dataset
    from promptmm.graph_store.dataset_writer import write_dataset
    from promptmm.graph_store.dgl.partition import partition

    random = np.random.default_rng(0)
    popularity = 1 / np.arange(1, options.items + 1) ** 0.6
    items = random.choice(options.items, (options.users, 12), p=popularity / popularity.sum())
    users = np.repeat(np.arange(options.users), 12)
    rows = random.standard_normal((options.items, options.dim), dtype=np.float32)
    names = [ids_of([f"{kind}{n}" for n in range(count)]) for kind, count in (("u", options.users), ("i", options.items))]
    catalog = Catalog(names[0], names[1], {"train": (users, items.ravel())}, {"text": (rows, np.ones(options.items, bool))})
    write_dataset(str(folder / "dataset"), catalog, {})
    partition(open_dataset(str(folder / "dataset")), str(folder / "graph"), GraphConfig(num_parts=2, method="metis"))


def add_features(graph: Path, target: Path, part: int) -> None:
    """The peer keeps feature rows in its servers."""
    import torch
    from dgl.data.utils import load_tensors, save_tensors
    from promptmm.graph_store.feature_rows import map_features

    file = str(target / f"node_feats_{part}.dgl")
    data = load_tensors(file)
    session = next(name for name in data if name.startswith("item/degree_")).removeprefix("item/degree_")
    rows = map_features(graph, json.loads((graph / "manifest.json").read_text()), part, "text").copy().values()
    save_tensors(file, {**data, f"item/text_{session}": torch.from_numpy(rows)})


def ours(options, graph, rank: int):
    """Steps of the sampled engine, batches made in the background."""
    from promptmm.core.config import OptimizerConfig, TeacherConfig

    client = two_hosts.client_of(options, graph, rank)
    config = TeacherConfig(
        dim=DIM, layers=2, dropout=0.0, prompt=False, feature_decay=0.0, feature_loss_weight=1.0, fusion_weight=1.0,
        train=OptimizerConfig(batch_size=options.batch, learning_rate=LEARNING_RATE),
    )  # fmt: skip
    teacher = two_hosts.sampled_teacher(config, options.fan_out, client, rank)
    asked, count = 0, 0
    for epoch in range(10**6):
        for batch in teacher.batches(epoch):
            teacher.train_step(batch, epoch)
            ranks, _ = client.owners.find(1, batch.items)
            asked, count = asked + int((ranks != rank).sum()), count + 1
            yield {
                "remote_items": asked / count,
                "feature_bytes": 2 * 4 * DIM * asked / count,  # z_m there, its gradient back
                "all_bytes": teacher.traffic.sent / count,
            }


def dgls(options, graph, rank: int):
    """Steps of DGL's own way."""
    import dgl
    import torch
    import torch.distributed as dist
    import torch.nn.functional as F
    from promptmm.graph_store.dgl.tables import zeros

    def data(kind: str, name: str):
        return graph.nodes[kind].data[f"{name}_{options.session}"]

    book = graph.get_partition_book()
    tables = {
        kind: dgl.distributed.DistEmbedding(
            graph.num_nodes(kind), DIM, name=f"{kind}_ids", init_func=zeros, part_policy=graph.get_node_partition_policy(kind)
        )
        for kind in ("user", "item")
    }
    for kind, table in tables.items():
        own = book.partid2nids(rank, kind)
        table.weight[own] = 0.1 * torch.randn(len(own), DIM)
    sparse = dgl.distributed.optim.SparseAdam(list(tables.values()), lr=LEARNING_RATE)
    torch.manual_seed(0)
    tower = torch.nn.Linear(options.dim, DIM)
    dense = torch.optim.Adam(tower.parameters(), lr=1e-3)
    edges = dgl.distributed.edge_split(torch.ones(graph.num_edges("interacts"), dtype=torch.bool), book, etype="interacts", force_even=True)
    loader = dgl.dataloading.DistEdgeDataLoader(
        graph, {"interacts": edges}, dgl.dataloading.NeighborSampler([options.fan_out] * 2), batch_size=options.batch // 2, shuffle=True,
        drop_last=True, negative_sampler=dgl.dataloading.negative_sampler.Uniform(1),
    )  # fmt: skip
    items = book.partid2nids(rank, "item")
    first, last = int(items.min()), int(items.max())
    asked = count = 0
    while True:
        for inputs, positive, negative, blocks in loader:
            ids = inputs["item"]
            asked, count = asked + int(((ids < first) | (ids > last)).sum()), count + 1
            degrees = {kind: data(kind, "degree")[inputs[kind]].clamp(min=1).float() for kind in tables}
            x = {kind: tables[kind](inputs[kind]) for kind in tables}
            z = tower(data("item", "text")[ids].float())

            def to(block, kind, h, degrees=degrees):
                """Ã h into users or items, scaled as ours."""
                etype = {"user": "interacted_by", "item": "interacts"}[kind]
                other = "item" if kind == "user" else "user"
                sub = block[etype]
                with sub.local_scope():
                    sub.srcdata["h"] = h * degrees[other][: len(h), None].rsqrt()
                    sub.update_all(dgl.function.copy_u("h", "m"), dgl.function.sum("m", "h"))
                    drawn = sub.in_degrees().clamp(min=1).float()
                    own = degrees[kind][: sub.num_dst_nodes()]
                    return sub.dstdata["h"] * (own.sqrt() / drawn)[:, None]

            outer, inner = blocks
            layers = [x]
            for block in blocks:
                h = layers[-1]
                layers.append({kind: to(block, kind, h["item" if kind == "user" else "user"]) for kind in tables})
            count_of = {kind: inner.num_dst_nodes(kind) for kind in tables}
            final = {kind: sum(layer[kind][: count_of[kind]] for layer in layers) / 3 for kind in tables}
            middle = to(outer, "user", z)
            modal = {"user": middle[: count_of["user"]], "item": to(inner, "item", middle)}
            final = {kind: final[kind] + F.normalize(modal[kind]) for kind in tables}

            def bpr(vectors, positive=positive, negative=negative):
                scores = []
                for pairs in (positive, negative):
                    u, i = pairs.edges(etype="interacts")
                    scores.append((vectors["user"][u] * vectors["item"][i]).sum(1))
                return -F.logsigmoid(scores[0] - scores[1]).mean()

            loss = bpr(final) + bpr(modal) + 1e-4 * sum(h.square().sum() for h in x.values()) / options.batch
            dense.zero_grad()
            sparse.zero_grad()
            loss.backward()
            for parameter in tower.parameters():
                dist.all_reduce(parameter.grad)
                parameter.grad /= 2
            dense.step()
            sparse.step()
            yield {"remote_items": asked / count, "feature_bytes": 4 * options.dim * asked / count}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    for name, default in (
        ("users", 40_000),
        ("items", 20_000),
        ("dim", 1024),
        ("batch", 1024),
        ("fan-out", 10),
        ("steps", 30),
        ("repeats", 3),
    ):
        parser.add_argument(f"--{name}", type=int, default=default)
    two_hosts.add_arguments(parser)
    options = parser.parse_args()
    if options.role:
        side = ours if options.role == "ours" else dgls
        prepare = add_features if options.role == "dgl" else None
        two_hosts.serve_and_work(options, lambda graph, rank: side(options, graph, rank), prepare)
        return
    with tempfile.TemporaryDirectory() as folder, two_hosts.simulated().simulated_hosts(2, Path(folder)) as hosts:
        make_graph(Path(folder), options)
        words = [
            word for name in ("dim", "batch", "fan_out", "steps") for word in (f"--{name.replace('_', '-')}", str(getattr(options, name)))
        ]
        found: dict[str, list[dict]] = {"dgl": [], "dgl, our allocator settings": [], "ours": []}
        for _ in range(options.repeats):
            for role in found:
                found[role].append(two_hosts.run(__file__, role.split(",")[0], hosts, folder, words, allocator=role != "dgl")[0])
                print(f"# {role}: {found[role][-1]}", flush=True)

    def median(role: str, name: str) -> float:
        return statistics.median(run[name] for run in found[role])

    what = f"{options.dim}-d features, d = {DIM}, batch {options.batch}, fan-out {options.fan_out}, two hops, two hosts"
    print(f"| {what} | DGL's way | the same with our allocator settings | ours |")
    print("|---|---:|---:|---:|")
    rates = [1 / median(role, "seconds") for role in found]
    print(f"| steps a second (ours to this) | {' | '.join(f'{rate:.2f} ({rates[-1] / rate:.1f})' for rate in rates)} |")
    sent = [median(role, "feature_bytes") / 2**20 for role in found]
    shown = " | ".join(f"{mib:.2f} (1/{mib / sent[-1]:.1f})" for mib in sent)
    print(f"| feature MiB a worker receives in a step, gradients included | {shown} |")
    items = [f"{median(role, 'remote_items'):.0f}" for role in found]
    print(f"| remote items a step | {' | '.join(items)} |")


if __name__ == "__main__":
    main()
