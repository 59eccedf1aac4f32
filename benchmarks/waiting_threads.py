"""How long torch's threads should spin while they wait: a teacher's epoch on two threads, alone and beside a process that never rests.

    python benchmarks/waiting_threads.py [--epochs 9]

Trains the teacher of the recipe `demo` in one process under each way of waiting; prints the median seconds of the epochs after the first.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

WAYS = {
    "sleep at once": {"GOMP_SPINCOUNT": "0"},
    "spin 1,000 times (ours)": {"GOMP_SPINCOUNT": "1000"},
    "spin 3,000 times": {"GOMP_SPINCOUNT": "3000"},
    "spin 10,000 times": {"GOMP_SPINCOUNT": "10000"},
    "spin 300,000 times (libgomp's default)": {"GOMP_SPINCOUNT": "300000"},
}


def promptmm(*words: str, **environment: str) -> None:
    command = [sys.executable, "-m", "promptmm.jobs.cli", *words, "cluster.executor=local"]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, env={**os.environ, **environment})


def epoch_seconds(run: str, epochs: int, environment: dict[str, str]) -> float:
    """Median seconds of an epoch, the first left out."""
    redo = ["run.redo=train-teacher"] if Path(run, "stages", "train-teacher.json").exists() else []
    promptmm("train-teacher", "demo", f"run.dir={run}", f"teacher.train.epochs={epochs}", *redo, **environment)
    rows = [json.loads(line) for line in Path(run, "training", "teacher", "metrics.jsonl").read_text().splitlines()]
    return statistics.median(row["seconds"] for row in rows[1:])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--epochs", type=int, default=9)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        run = f"{folder}/run"
        promptmm("prepare", "demo", f"run.dir={run}")
        print("| threads | alone, s | beside a busy process, s |\n|---|---:|---:|")
        for way, environment in WAYS.items():
            alone = epoch_seconds(run, options.epochs, environment)
            neighbour = subprocess.Popen([sys.executable, "-c", "while True: pass"])
            try:
                beside = epoch_seconds(run, options.epochs, environment)
            finally:
                neighbour.kill()
                neighbour.wait()
            print(f"| {way} | {alone:.2f} | {beside:.2f} |", flush=True)


if __name__ == "__main__":
    main()
