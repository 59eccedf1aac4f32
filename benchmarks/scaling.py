"""What grows with the catalog and what does not: preparation, and a step of the sampled teacher, on catalogs of 10^5 to 10^7 items.

    sudo python benchmarks/scaling.py --out scaling.json --scratch DIR [--sizes 100000x1000000 1000000x10000000 10000000x10000000]

A size is items x users, with 10 interactions a user. Each is generated as Parquet, prepared and partitioned (two parts, by hash) by the
project's own commands, in processes whose anonymous and shared memory is sampled; then the sampled teacher trains on two simulated hosts
(network namespaces: root, iproute2), with one DGL server and one worker of one thread on each. A stage that is in the file already is not
run again as long as DIR has what it made.
"""

import argparse
import json
import shutil
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import memory
import two_hosts

CLUSTERS = 200


def commands(folder: Path, items: int, users: int, options) -> dict[str, list[str]]:
    """The three verbs that make graph/."""
    command = [sys.executable, "-m", "promptmm.jobs.cli"]
    synthetic = {
        "num_users": users, "num_items": items, "interactions_per_user": 10, "num_clusters": CLUSTERS,
        "dims": f"{{text: {options.feature_dim}}}",
    }  # fmt: skip
    source, run = f"source.path={folder / 'raw'}", f"run.dir={folder}"
    return {
        "generate": [*command, "generate", source, *(f"source.synthetic_{name}={value}" for name, value in synthetic.items())],
        "prepare": [*command, "prepare", source, "source.format=parquet", "source.modalities={text: text.parquet}", run],
        "partition": [*command, "partition", run, "graph.num_parts=2", "graph.method=hash"],
    }


def steps(options, graph, rank: int):
    """Steps of the sampled teacher; rows gathered are those of users and items whose ID rows and features a step needs."""
    from promptmm.core.config import OptimizerConfig, TeacherConfig

    started, peak = time.perf_counter(), memory.Peak(lambda: memory.resident()["RssAnon"], 0.05)
    client = two_hosts.client_of(options, graph, rank)
    train = OptimizerConfig(batch_size=options.batch, learning_rate=0.01)
    config = TeacherConfig(dim=options.dim, layers=2, feature_decay=0.0, train=train)
    teacher = two_hosts.sampled_teacher(config, options.fan_out, client, rank)
    setup, rows, count = time.perf_counter() - started, 0, 0
    for epoch in range(10**6):
        for batch in teacher.batches(epoch):
            teacher.train_step(batch, epoch)
            rows, count = rows + sum(x.served.numel() for x in batch.exchanges), count + 1
            now = memory.resident()
            yield {
                "setup_seconds": setup,
                "rows": rows / count,
                "mib_sent": teacher.traffic.sent / count / 2**20,
                "anonymous_peak_mib": peak.highest,
                "shared_mib": now["RssShmem"],
                "mapped_mib": now["RssFile"],
            }


def measure(size: str, found: dict, save: Callable[[], None], options) -> None:
    """All stages of one size that are not in `found`."""
    items, users = map(int, size.split("x"))
    folder = Path(options.scratch) / size
    folder.mkdir(parents=True, exist_ok=True)
    for verb, words in commands(folder, items, users, options).items():
        if verb not in found:
            found[verb] = memory.run_measured(words)
            print(f"# {size}: {verb} {found[verb]}", flush=True)
            save()
    if options.stop_before_training or "train" in found:
        return
    with tempfile.TemporaryDirectory() as hosts_folder, two_hosts.simulated().simulated_hosts(2, Path(hosts_folder), 12) as hosts:
        words = [w for name in ("dim", "batch", "fan_out", "steps") for w in (f"--{name.replace('_', '-')}", str(getattr(options, name)))]
        found["train"] = two_hosts.run(__file__, "steps", hosts, str(folder), words, timeout=3000)
        print(f"# {size}: {found['train']}", flush=True)
        save()
    shutil.rmtree(folder)


def table(found: dict) -> str:
    """What was measured, a row a size."""
    lines = [
        "| items x users | generate | prepare | partition | CPU us an interaction | prepare, MiB | partition, MiB "
        "| rows a step | step, ms | us a row | worker, MiB |",
        "|---|---:|---:|---:|---:|---:|---:|---:|---:|---:|---:|",
    ]
    for size, facts in found.items():
        interactions, train = 10 * int(size.split("x")[1]), facts["train"]
        verbs = [facts[verb] for verb in ("generate", "prepare", "partition")]
        rows, seconds = sum(t["rows"] for t in train), train[0]["seconds"]
        columns = [
            size.replace("x", " x "),
            *(f"{verb['seconds']:.0f} s" for verb in verbs),
            f"{1e6 * sum(verb['cpu_seconds'] for verb in verbs[1:]) / interactions:.2f}",
            *(f"{verb['peak_mib']:.0f}" for verb in verbs[1:]),
            f"{rows:.0f}",
            f"{1000 * seconds:.0f}",
            f"{1e6 * seconds / rows:.2f}",
            f"{max(t['anonymous_peak_mib'] for t in train):.0f}",
        ]
        lines.append(f"| {' | '.join(columns)} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out")
    parser.add_argument("--sizes", nargs="*", default=["100000x1000000", "1000000x10000000", "10000000x10000000"], help="items x users")
    parser.add_argument("--scratch", help="folder for catalogs and graphs; the largest takes about 20 GB")
    parser.add_argument("--stop-before-training", action="store_true")
    for name, default in (("dim", 16), ("feature-dim", 64), ("batch", 4096), ("fan-out", 10), ("steps", 30)):
        parser.add_argument(f"--{name}", type=int, default=default)
    two_hosts.add_arguments(parser)
    options = parser.parse_args()
    if options.role:
        two_hosts.serve_and_work(options, lambda graph, rank: steps(options, graph, rank))
        return
    out = Path(options.out)
    found = json.loads(out.read_text()) if out.exists() else {}
    for size in options.sizes:
        measure(size, found.setdefault(size, {}), lambda: out.write_text(json.dumps(found, indent=1)), options)
    print(table({size: facts for size, facts in found.items() if "train" in facts}))


if __name__ == "__main__":
    main()
