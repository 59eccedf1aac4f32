"""LightGCN on Gowalla beside the published figures: the project's loader, trainer and evaluation, by epoch.

    python benchmarks/gowalla.py --path DIR_OF_GOWALLA [--epochs 20] [--device cuda] [--evaluate-every 1] [--out gowalla.json]

The split is LightGCN's (train.txt and test.txt) and has no validation interactions: as in the published runs the figures by epoch are of
*test*, and nothing is chosen by them. Settings are the published ones: 3 layers, d = 64, Adam with .001, L2 of 1e-4 an example, batches of
2,048, start .1. The published code draws an epoch's examples user by user, with as many of each in the mean; --user-balance 1 weighs our
examples so that the expected loss is the same.
"""

import argparse
import dataclasses
import json
import tempfile
import time
from pathlib import Path

import inprocess
import torch
from promptmm.core.ranking import evaluate
from promptmm.distributed.engines.full.trainer import FullTrainer
from promptmm.jobs.settings import load_settings

SETTINGS = [
    "source.format=lightgcn", "teacher.kind=lightgcn", "teacher.layers=3", "teacher.dim=64", "teacher.init_scale=0.1", "teacher.l2=1e-4",
    "teacher.train.learning_rate=0.001", "teacher.train.batch_size=2048",
]  # fmt: skip


def build(options: argparse.Namespace, folder: str) -> tuple[FullTrainer, tuple]:
    """The trainer, and the masks of the test split on its device."""
    where = [f"source.path={options.path}", f"run.dir={folder}", f"run.seed={options.seed}"]
    settings = load_settings(None, [*SETTINGS, *where, f"teacher.user_balance={options.user_balance}"])
    dataset = inprocess.prepare(settings)
    worker = dataclasses.replace(inprocess.start(options.threads), device=torch.device(options.device))
    trainer = inprocess.teacher_trainer(settings, dataset, worker)
    return trainer, tuple(mask.to(options.device) for mask in inprocess.masks(dataset, "test"))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--path", required=True)
    parser.add_argument("--epochs", type=int, default=20)
    parser.add_argument("--evaluate-every", type=int, default=1)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--user-balance", type=float, default=0.0)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        trainer, (held_out, seen) = build(options, folder)
        print("| epochs | loss | test Recall@20 | test NDCG@20 | seconds an epoch |\n|---:|---:|---:|---:|---:|", flush=True)
        for epoch in range(options.epochs):
            started = time.monotonic()
            loss = inprocess.train_epoch(trainer, epoch)["loss"]
            seconds = time.monotonic() - started
            if (epoch + 1) % options.evaluate_every and epoch + 1 < options.epochs:
                continue
            with torch.no_grad():
                users, items = trainer.task.vectors(trainer.view())["final"]
            found = evaluate(users, items, held_out, seen, [20])
            rows.append({"epochs": epoch + 1, "loss": loss, "recall": found["recall@20"], "ndcg": found["ndcg@20"], "seconds": seconds})
            print(f"| {epoch + 1} | {loss:.4f} | {found['recall@20']:.4f} | {found['ndcg@20']:.4f} | {seconds:.1f} |", flush=True)
            if options.out:
                options.out.write_text(json.dumps(rows, indent=1))


if __name__ == "__main__":
    main()
