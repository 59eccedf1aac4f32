"""Accuracy on a real data set: teacher, student and the same student without a teacher over seeds, and an ablation.

    python benchmarks/accuracy.py --path DIR_OF_TIKTOK --out results.json [--seeds 0 1 2] [--ablation-seeds 0 1 2] [--threads 2]

Every run selects its epoch on validation; test is read once, at its end. Results are added to the file as they come, and what is there is
not run again. The table is printed at the end.
"""

import argparse
import json
import shutil
import tempfile
from pathlib import Path

import inprocess
import numpy as np
from promptmm.core.ranking import evaluate
from promptmm.distributed.teacher_artifact import read_revision
from promptmm.jobs.settings import load_settings
from safetensors.torch import load_file

ABLATIONS: dict[str, list[str]] = {
    "without pair": ["distill.pair_weight=0"],
    "without list": ["distill.list_weight=0"],
    "without embedding": ["distill.embedding_weight=0"],
    "without disentangling": ["distill.disentangle=false"],
    "without re-weighting": ["distill.reweight=false"],
    "without the teacher's top items": ["distill.num_top=0", "distill.num_uniform=15"],
}


def metrics(dataset, users, items) -> dict:
    found = {}
    for split in ("validation", "test"):
        held_out, exclude = inprocess.masks(dataset, split)
        values = evaluate(users, items, held_out, exclude, [20])
        found.update({f"{split} {name}": values[f"{name}@20"] for name in ("recall", "ndcg", "ndcg_retrieved")})
    return found


def teacher_metrics(settings, dataset) -> dict:
    vectors = read_revision(f"{settings.dir}/teacher", 0).vectors
    modal = {
        f"validation recall of {m}": metrics(dataset, vectors.modal_user[m], vectors.modal_item[m])["validation recall"]
        for m in vectors.modal_item
    }
    return {**metrics(dataset, vectors.user, vectors.item), **modal}


def student_metrics(settings, dataset) -> dict:
    vectors = load_file(f"{settings.dir}/training/student/model/vectors.safetensors")
    return metrics(dataset, vectors["user"], vectors["item"])


class Runs:
    """All cells of the tables, kept in one JSON file."""

    def __init__(self, options) -> None:
        self.options, self.out = options, Path(options.out)
        self.cells = json.loads(self.out.read_text()) if self.out.exists() else {}
        self.worker = inprocess.start(options.threads)

    def done(self, name: str, seed: int) -> bool:
        return f"{name}, seed {seed}" in self.cells

    def add(self, name: str, seed: int, values: dict) -> None:
        self.cells[f"{name}, seed {seed}"] = values
        self.out.write_text(json.dumps(self.cells, indent=1))
        print(f"### {name}, seed {seed}: " + ", ".join(f"{k} {v:.4f}" for k, v in values.items()), flush=True)

    def settings(self, folder: str, seed: int, *overrides: str):
        where = [f"source.path={self.options.path}", f"run.dir={folder}", f"run.seed={seed}"]
        return load_settings(self.options.recipe, [*where, *overrides])

    def student(self, name: str, folder: str, seed: int, *overrides: str) -> None:
        """One student from the labels in `folder`, or from new ones where the candidates differ."""
        if self.done(name, seed):
            return
        settings = self.settings(folder, seed, *overrides)
        dataset = inprocess.open_dataset(f"{folder}/dataset")
        shutil.rmtree(f"{folder}/training/student", ignore_errors=True)
        if settings.distill.use_teacher:
            inprocess.write_labels(settings, dataset, settings.labels.epochs)
        inprocess.train_student(settings, dataset, self.worker)
        self.add(name, seed, student_metrics(settings, dataset))

    def seed(self, folder: str, seed: int, ablation: bool) -> None:
        """The main cells of a seed, or its ablation; a teacher that is in `folder` already is used again."""
        main = ["teacher", "student", "student without a teacher"]
        names = [*ABLATIONS, "teacher without the prompt", "without the prompt"] if ablation else main
        if all(self.done(name, seed) for name in names):
            return
        settings = self.settings(folder, seed)
        if not Path(folder, "teacher").exists():
            dataset = inprocess.prepare(settings)
            inprocess.train_teacher(settings, dataset, self.worker)
            self.add("teacher", seed, teacher_metrics(settings, dataset))
        if not ablation:
            self.student("student", folder, seed)
            self.student("student without a teacher", folder, seed, "distill.use_teacher=false")
            return
        for name, overrides in ABLATIONS.items():
            self.student(name, folder, seed, *overrides)
        for stale in ("teacher", "training"):
            shutil.rmtree(f"{folder}/{stale}")
        bare, dataset = self.settings(folder, seed, "teacher.prompt=false"), inprocess.open_dataset(f"{folder}/dataset")
        inprocess.train_teacher(bare, dataset, self.worker)
        self.add("teacher without the prompt", seed, teacher_metrics(bare, dataset))
        self.student("without the prompt", folder, seed, "teacher.prompt=false")


def table(cells: dict) -> str:
    groups: dict[str, list[dict]] = {}
    for name, values in cells.items():
        groups.setdefault(name.rsplit(", seed", 1)[0], []).append(values)
    shown = ("validation recall", "test recall", "test ndcg", "test ndcg_retrieved")
    lines = ["| | seeds | " + " | ".join(f"{s}@20" for s in shown) + " |", "|---|---:|" + "---:|" * len(shown)]
    for name, runs in groups.items():
        columns = [[run[s] for run in runs] for s in shown]
        lines.append(
            f"| {name} | {len(runs)} | "
            + " | ".join(f"{np.mean(c):.4f} ± {np.std(c, ddof=1) if len(c) > 1 else 0:.4f}" for c in columns)
            + " |"
        )
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--path", required=True)
    parser.add_argument("--recipe", default="tiktok")
    parser.add_argument("--out", required=True)
    parser.add_argument("--seeds", type=int, nargs="*", default=[0, 1, 2])
    parser.add_argument("--ablation-seeds", type=int, nargs="*", default=[0, 1, 2])
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    runs = Runs(options)
    with tempfile.TemporaryDirectory() as base:
        for ablation in (False, True):
            for seed in options.ablation_seeds if ablation else options.seeds:
                runs.seed(f"{base}/seed-{seed}", seed, ablation)
    print(table(runs.cells))


if __name__ == "__main__":
    main()
