"""The sampled engine's teacher and student beside the full engine's, over seeds, on a real data set.

    python benchmarks/engines.py --path DIR_OF_TIKTOK --out engines.json [--seeds 0 1 2 3 4] [--fan-outs [100]] \\
        [--threads 2] [--set key=value ...]

In one process a seed and engine, with the trainers of the pipeline; the sampled engine's graph store is DGL's standalone one. Every run
selects its epoch on validation; test is read once, at its end. Results are added to the file as they come, and what is there is not run
again. The table is printed at the end.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np


def cell(options) -> None:
    """Trains teacher and student of one seed with one engine, and prints their metrics as a line of JSON."""
    os.environ.setdefault("DGLBACKEND", "pytorch")
    import inprocess
    from promptmm.jobs.runs.models import trained_student, trained_teacher
    from promptmm.jobs.settings import load_settings

    with tempfile.TemporaryDirectory() as folder:
        words = [f"source.path={options.path}", f"run.dir={folder}", f"run.seed={options.seeds[0]}", f"cluster.engine={options.cell}"]
        words += [f"sampling.fan_outs={options.fan_outs}", "cluster.executor=local", f"cluster.threads={options.threads}"]
        settings = load_settings(options.recipe, [*words, *options.set])
        dataset, seconds = inprocess.prepare(settings), []
        if options.cell == "sampled":
            inprocess.partition(settings, dataset)
        started = time.monotonic()
        inprocess.train_teacher(settings, dataset)
        seconds.append(time.monotonic() - started)
        inprocess.write_labels(settings, dataset, settings.labels.epochs)
        started = time.monotonic()
        inprocess.train_student(settings, dataset)
        seconds.append(time.monotonic() - started)
        models = {"teacher": trained_teacher(settings.dir, dataset, None), "student": trained_student(settings.dir, None)}
        found = {**{name: metrics(dataset, model) for name, model in models.items()}, "seconds": seconds}
        print("RESULT " + json.dumps(found), flush=True)


def metrics(dataset, vectors) -> dict:
    import inprocess
    from promptmm.core.ranking import evaluate

    found = {}
    for split in ("validation", "test"):
        values = evaluate(vectors.users, vectors.items, *inprocess.masks(dataset, split), [20])
        found.update({f"{split} {name}": values[f"{name}@20"] for name in ("recall", "ndcg")})
    return found


def table(cells: dict, seeds: list[int]) -> str:
    lines = ["| | validation Recall@20 | test Recall@20 | test NDCG@20 |", "|---|---:|---:|---:|"]
    for model in ("teacher", "student"):
        for engine in ("full", "sampled"):
            runs = [cells[f"{engine}, seed {seed}"][model] for seed in seeds if f"{engine}, seed {seed}" in cells]
            columns = [[run[name] for run in runs] for name in ("validation recall", "test recall", "test ndcg")]
            shown = (f"{np.mean(c):.4f} ± {np.std(c, ddof=1) if len(c) > 1 else 0:.4f}" for c in columns)
            lines.append(f"| {model}, {engine} ({len(runs)} seeds) | " + " | ".join(shown) + " |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--path", required=True)
    parser.add_argument("--recipe", default="tiktok")
    parser.add_argument("--out")
    parser.add_argument("--seeds", type=int, nargs="*", default=[0, 1, 2, 3, 4])
    parser.add_argument("--fan-outs", default="[10]")
    parser.add_argument("--set", nargs="*", default=[], help="settings of both engines")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--cell", choices=("full", "sampled"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.cell:
        cell(options)
        return
    out = Path(options.out)
    cells = json.loads(out.read_text()) if out.exists() else {}
    for seed in options.seeds:
        for engine in ("full", "sampled"):
            name = f"{engine}, seed {seed}"
            if name in cells:
                continue
            words = [sys.executable, __file__, "--path", options.path, "--recipe", options.recipe, "--fan-outs", options.fan_outs]
            words += ["--threads", str(options.threads), "--cell", engine, "--seeds", str(seed), "--set", *options.set]
            done = subprocess.run(words, capture_output=True, text=True, check=False)
            if done.returncode:
                raise SystemExit(done.stdout + done.stderr)
            cells[name] = json.loads(done.stdout.split("RESULT ")[1])
            out.write_text(json.dumps(cells, indent=1))
            print(f"### {name}: {cells[name]}", flush=True)
    print(table(cells, options.seeds))


if __name__ == "__main__":
    main()
