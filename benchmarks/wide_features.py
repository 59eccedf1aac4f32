"""Memory of a worker that trains on features larger than it may hold: 10^6 items x 4,096-d float16 (8 GB) by default.

    sudo python benchmarks/wide_features.py --scratch DIR [--items 1000000] [--feature-dim 4096] [--steps 30]

The catalog is generated, prepared and partitioned by the project's own commands; then the sampled teacher trains on two simulated hosts
(network namespaces: root, iproute2), one DGL server and one worker of one thread on each. What is reported is the largest anonymous and
shared memory of a worker, from its start to the last step: tables, optimizer state, moments, Gram matrices and batches. Pages of mapped
feature files are apart: the system drops them when it needs room. DIR needs four times the features' size while the catalog is made.
"""

import argparse
import shutil
import tempfile
from pathlib import Path

import memory
import scaling
import two_hosts


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--scratch")
    for name, default in (("items", 10**6), ("users", 10**6), ("dim", 64), ("feature-dim", 4096), ("batch", 4096), ("fan-out", 10)):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--steps", type=int, default=30)
    two_hosts.add_arguments(parser)
    options = parser.parse_args()
    if options.role:
        two_hosts.serve_and_work(options, lambda graph, rank: scaling.steps(options, graph, rank))
        return
    folder = Path(options.scratch) / "wide"
    if not (folder / "stages" / "partition.json").exists():
        for verb, words in scaling.commands(folder, options.items, options.users, options).items():
            print(f"# {verb}: {memory.run_measured(words)}", flush=True)
        shutil.rmtree(folder / "raw")
    with tempfile.TemporaryDirectory() as hosts_folder, two_hosts.simulated().simulated_hosts(2, Path(hosts_folder), 6) as hosts:
        words = [w for name in ("dim", "batch", "fan_out", "steps") for w in (f"--{name.replace('_', '-')}", str(getattr(options, name)))]
        found = two_hosts.run(__file__, "steps", hosts, str(folder), words, timeout=3000)
    size = options.items * options.feature_dim * 2 / 2**30
    print("| features | set-up, s | step, ms | anonymous, MiB | shared, MiB | mapped files, MiB |")
    print("|---|---:|---:|---:|---:|---:|")
    for rank, facts in enumerate(found):
        print(
            f"| {size:.1f} GiB, worker {rank} | {facts['setup_seconds']:.0f} | {1000 * facts['seconds']:.0f} | "
            f"{facts['anonymous_peak_mib']:.0f} | {facts['shared_mib']:.0f} | {facts['mapped_mib']:.0f} |"
        )


if __name__ == "__main__":
    main()
