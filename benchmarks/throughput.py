"""Steps a second of the sampled teacher on two hosts, beside DGL's own way, in one run.

    sudo python benchmarks/throughput.py [--users 40000] [--items 20000] [--dim 1024] [--batch 1024] [--fan-out 10] [--repeats 3]

Two hosts are simulated with network namespaces (root, iproute2), one part of the graph, one DGL server and one worker with one torch thread
on each. The peer is DGL's own way: DistEdgeDataLoader with a NeighborSampler and a Uniform negative sampler, raw float32 feature rows
pulled through a DistTensor, DistEmbedding with DGL's SparseAdam. Both sides have the same model (two layers of LightGCN, one linear
reduction layer with its propagation, BPR on both), fan-outs, global batch and partition.
"""

import argparse
import json
import os
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

DIM, LEARNING_RATE = 32, 0.01
NODES = ["host0", "host1"]


def make_graph(folder: Path, options) -> None:
    """A catalog with popular items and one modality, cut in two."""
    from promptmm.graph_store.catalog import Catalog
    from promptmm.graph_store.config import GraphConfig
    from promptmm.graph_store.dataset import open_dataset, write_dataset
    from promptmm.graph_store.partition import partition

    random = np.random.default_rng(0)
    popularity = 1 / np.arange(1, options.items + 1) ** 0.6
    items = random.choice(options.items, (options.users, 12), p=popularity / popularity.sum())
    users = np.repeat(np.arange(options.users), 12)
    rows = random.standard_normal((options.items, options.dim), dtype=np.float32)
    names = [[f"{kind}{n}" for n in range(count)] for kind, count in (("u", options.users), ("i", options.items))]
    catalog = Catalog(names[0], names[1], {"train": (users, items.ravel())}, {"text": (rows, np.ones(options.items, bool))})
    write_dataset(str(folder / "dataset"), catalog, {})
    partition(open_dataset(str(folder / "dataset")), str(folder / "graph"), GraphConfig(num_parts=2, method="metis"))


def session_config(folder: Path, part: int, name: str, target: Path, with_features: bool) -> Path:
    """The session's DGL configuration on one host; the peer keeps feature rows in its servers."""
    import torch
    from dgl.data.utils import load_tensors, save_tensors
    from promptmm.graph_store.feature_rows import map_features
    from promptmm.graph_store.servers import write_session_config

    path = write_session_config(folder, [part], name, target)
    if with_features:
        file = str(target / f"node_feats_{part}.dgl")
        rows = map_features(folder, json.loads((folder / "manifest.json").read_text()), part, "text").copy().values()
        save_tensors(file, {**load_tensors(file), f"item/text_{name}": torch.from_numpy(rows)})
    return path


def host(options) -> None:
    """A host's process: its server in the background, its worker here."""
    from promptmm.graph_store.servers import dgl_environment

    folder, rank = Path(options.folder), options.rank
    with tempfile.TemporaryDirectory() as target:
        config = session_config(folder / "graph", rank, options.session, Path(target), options.role == "dgl")
        (Path(target) / "ip_config.txt").write_text(options.servers.replace(",", "\n") + "\n")
        os.environ.update(dgl_environment(config, 2), DGL_IP_CONFIG=str(Path(target) / "ip_config.txt"))
        roles = {**os.environ, "DGL_ROLE": "server", "DGL_SERVER_ID": str(rank)}
        with open(folder / f"server-{options.role}-{rank}.log", "wb") as log:
            words = [sys.executable, "-m", "promptmm.graph_store.server_process"]
            server = subprocess.Popen(words, env=roles, stdout=log, stderr=subprocess.STDOUT)
        try:
            worker(options, rank)
        finally:
            server.terminate()
            server.wait(20)


def worker(options, rank: int) -> None:
    """Connects, trains, and prints what it measured."""
    os.environ.update(DGL_ROLE="client", LOCAL_RANK="0", RANK=str(rank), WORLD_SIZE="2", DS_ACCELERATOR="cpu")
    import dgl
    import torch
    import torch.distributed as dist
    from promptmm.graph_store.neighbours import register

    register()
    torch.set_num_threads(1)
    dgl.distributed.initialize(os.environ["DGL_IP_CONFIG"])
    dist.init_process_group("gloo", init_method=f"tcp://{options.master}", rank=rank, world_size=2)
    graph = dgl.distributed.DistGraph(f"promptmm_{options.session}")
    steps = (ours if options.role == "ours" else dgls)(options, graph, rank)
    times, facts = [], {}
    for number in range(options.steps + 3):
        dist.barrier()
        started = time.perf_counter()
        facts = next(steps)
        dist.barrier()
        if number >= 3:
            times.append(time.perf_counter() - started)
    if rank == 0:
        print("RESULT " + json.dumps({"seconds": statistics.median(times), "total": sum(times), **facts}), flush=True)
    dist.barrier()
    os._exit(0)  # DGL's exit waits for peers; the servers are ended by their hosts


def ours(options, graph, rank: int):
    """Steps of the sampled engine, batches made in the background."""
    import torch
    from promptmm.core.config import OptimizerConfig, SamplingConfig, TeacherConfig
    from promptmm.distributed.prefetch import Prefetched
    from promptmm.distributed.sampled_teacher import SampledTeacher
    from promptmm.distributed.worker import Worker
    from promptmm.graph_store.client import GraphClient

    folder = Path(options.folder) / "graph"
    session = {"session": options.session, "locations": [(node, str(folder)) for node in NODES]}
    client = GraphClient(graph, session, folder, rank, NODES)
    config = TeacherConfig(
        dim=DIM, layers=2, dropout=0.0, prompt=False, feature_decay=0.0, feature_loss_weight=1.0, fusion_weight=1.0,
        train=OptimizerConfig(batch_size=options.batch, learning_rate=LEARNING_RATE),
    )  # fmt: skip
    sampling = SamplingConfig(fan_outs=[options.fan_out])
    teacher = SampledTeacher(client, Worker(rank, 2, torch.device("cpu"), tuple(NODES)), config, sampling, 0, 0)
    asked, count = 0, 0
    for epoch in range(10**6):
        for batch in Prefetched(teacher.batches(epoch), 2, 60.0, "a batch"):
            teacher.train_step(batch, epoch, LEARNING_RATE)
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
    from promptmm.graph_store.embeddings import zeros

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


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def measure(role: str, hosts, options) -> dict:
    """One run of one side; what its first worker measured."""
    from promptmm.distributed.config import ClusterConfig
    from promptmm.distributed.launch import worker_environment

    session = f"{role}{os.urandom(3).hex()}"
    servers = ",".join(f"{hosts.address(h)} {30_100 + h}" for h in range(2))
    words = [sys.executable, "-W", "ignore", __file__, "--role", role, "--session", session, "--servers", servers]
    words += ["--master", f"{hosts.address(0)}:{free_port()}", "--folder", options.folder]
    for name in ("users", "items", "dim", "batch", "fan_out", "steps"):
        words += [f"--{name.replace('_', '-')}", str(getattr(options, name))]
    environment = {**os.environ, "GLOO_SOCKET_IFNAME": "eth0", "OMP_NUM_THREADS": "1", "DGLBACKEND": "pytorch"}
    environment.update(worker_environment(ClusterConfig()))  # allocator and threads, both sides alike
    running = [
        subprocess.Popen(
            hosts.command(rank, [*words, "--rank", str(rank)]), env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )
        for rank in range(2)
    ]
    try:
        output = [process.communicate(timeout=400)[0] for process in running]
    finally:
        for rank in range(2):
            for pid in hosts.pids(rank):
                os.kill(pid, 9)
    if "RESULT " not in output[0]:
        raise SystemExit(f"{role} failed:\n{output[0][-3000:]}\n{output[1][-3000:]}")
    return json.loads(output[0].split("RESULT ")[1].splitlines()[0])


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
    for name in ("role", "session", "servers", "master", "folder"):
        parser.add_argument(f"--{name}", help=argparse.SUPPRESS)
    parser.add_argument("--rank", type=int, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.role:
        host(options)
        return
    sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))
    import hosts as simulated

    if simulated.why_not():
        raise SystemExit(simulated.why_not())
    with tempfile.TemporaryDirectory() as folder, simulated.simulated_hosts(2, Path(folder)) as hosts:
        options.folder = folder
        make_graph(Path(folder), options)
        found: dict[str, list[dict]] = {"dgl": [], "ours": []}
        for _ in range(options.repeats):
            for role in found:
                found[role].append(measure(role, hosts, options))
                print(f"# {role}: {found[role][-1]}", flush=True)

    def median(role: str, name: str) -> float:
        return statistics.median(run[name] for run in found[role])

    what = f"{options.dim}-d features, d = {DIM}, batch {options.batch}, fan-out {options.fan_out}, two hops, two hosts"
    print(f"| {what} | DGL's way | ours | ratio |")
    print("|---|---:|---:|---:|")
    rates = [1 / median(role, "seconds") for role in ("dgl", "ours")]
    print(f"| steps a second | {rates[0]:.2f} | {rates[1]:.2f} | {rates[1] / rates[0]:.1f} |")
    sent = [median(role, "feature_bytes") / 2**20 for role in ("dgl", "ours")]
    print(f"| feature MiB a worker receives in a step, gradients included | {sent[0]:.2f} | {sent[1]:.2f} | 1/{sent[0] / sent[1]:.1f} |")
    print(f"| remote items a step | {median('dgl', 'remote_items'):.0f} | {median('ours', 'remote_items'):.0f} | |")


if __name__ == "__main__":
    main()
