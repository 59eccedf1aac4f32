"""Labels: how fast they are made and read, beside what that cannot be faster than, and how many bytes they take.

    python benchmarks/labels.py [--users 50000] [--items 20000] [--dim 64] [--repeats 3]

A generated catalog with twenty train items a user and two modalities, a teacher's artifact of random vectors, lists of 32 candidates, half
of them from the teacher's ranking, one thread. Made: lists a second with rankings at hand, drawing, scoring, encoding and writing; beside
them the raw limit, which gathers the same rows of the same vectors and multiplies them, and does nothing else. Labels by user are made
once: their rate and their bytes are of scores, of which a list has 33 in the raw limit. Read: lists a second by the student's source, as
int64 and float32 tensors, and the time of a step of 1,024 of them. Figures are medians over the repeats, which measure all of it in turn.
"""

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import torch

TRAIN_ITEMS, BATCH, DEPTH, BLOCKS = 20, 1024, 100, 4
VARIANTS = {
    "float16": {"scores": "float16"},
    "uint8": {"scores": "uint8"},
    "uint8, zstd": {"scores": "uint8", "compression": "zstd"},
    "by user, float16": {"scores": "float16", "by": "users", "pool": 200},
    "by user, uint8": {"scores": "uint8", "by": "users", "pool": 200},
}


def build(folder: Path, options):
    """Writes dataset/, a teacher's artifact and its rankings; returns the dataset and the job of labels."""
    import numpy as np
    from promptmm.core.config import DistillationConfig
    from promptmm.core.vectors import TeacherVectors
    from promptmm.distributed.artifacts.teacher import output_of_vectors, write_revision
    from promptmm.distributed.labels.rankings import rank_here
    from promptmm.distributed.messages import LabelJob
    from promptmm.distributed.worker import Worker
    from promptmm.graph_store.catalog import Catalog, ids_of
    from promptmm.graph_store.dataset import open_dataset
    from promptmm.graph_store.dataset_writer import write_dataset

    random, generator = np.random.default_rng(0), torch.Generator().manual_seed(0)
    users, items = np.repeat(np.arange(options.users), TRAIN_ITEMS), random.integers(0, options.items, options.users * TRAIN_ITEMS)
    names = [ids_of([f"{kind}{n}" for n in range(count)]) for kind, count in (("u", options.users), ("i", options.items))]
    write_dataset(str(folder / "dataset"), Catalog(*names, {"train": (users, items)}, {}), {})
    sides = [[torch.randn(count, options.dim, generator=generator) for _ in range(3)] for count in (options.users, options.items)]
    modal = [dict(zip(("visual", "text"), side[1:])) for side in sides]
    vectors = TeacherVectors(sides[0][0], sides[1][0], *modal, None, None, {})
    url = str(folder / "teacher")
    write_revision(url, 0, output_of_vectors(Worker(0, 1, torch.device("cpu"), ("here",)), vectors), {}, {})
    dataset = open_dataset(str(folder / "dataset"))
    config = DistillationConfig(num_uniform=16, num_top=16, top_depth=DEPTH)
    count = dataset.manifest["num_interactions"]["train"]
    job = LabelJob(str(folder / "dataset"), url, 0, config, BATCH, 64, count, 0)
    rank_here(job.rankings, dataset)
    return dataset, vectors, job


def seconds(work: Callable[[], object]) -> float:
    """Times a call."""
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def measure(folder: Path, dataset, vectors, job, variant: dict) -> dict[str, float]:
    """Makes and reads the labels of a variant; returns seconds, examples and bytes."""
    from promptmm.core.scoring import candidate_scores
    from promptmm.distributed.labels.files import labels_url
    from promptmm.distributed.labels.labeler import Labeler, label_facts, labels_left, open_labeler, publish_labels, work_of
    from promptmm.distributed.labels.rankings import open_rankings
    from promptmm.distributed.labels.source import MaterialisedLabels
    from promptmm.distributed.labels.user_labels import UserLabels

    job = replace(job, **variant)
    by_user, url = job.by == "users", labels_url(str(folder), 0)
    if not by_user:  # some blocks of an epoch
        job = replace(job, num_examples=min(job.num_examples, BLOCKS * job.steps_a_block * BATCH))
    work, facts = work_of(job, dataset, range(1)), label_facts(job, 1, {})
    labels_left(job, url, work, {**facts, "anew": time.time()})
    labeler = open_labeler(job, dataset)
    made = seconds(lambda: [labeler.write(url, item) for item in work])
    publish_labels(url, work, facts)
    whole = Labeler(replace(job, by="examples"), dataset)
    lists = [whole.labels(0, block) for block in range(min(BLOCKS, job.num_blocks))]
    sides = [(vectors.user, vectors.item), *((vectors.modal_user[m], vectors.modal_item[m]) for m in vectors.modal_item)]

    def raw() -> None:
        for labels in lists:
            for of_users, of_items in sides:
                candidate_scores(of_users, of_items, labels.users, labels.candidates)

    scored = sum(len(labels) for labels in lists)
    if by_user:
        source = UserLabels(str(folder), job, ["visual", "text"], dataset)
    else:
        source = MaterialisedLabels(str(folder), job, ["visual", "text"], lambda: open_rankings(job.rankings, dataset).at)
    files = [path for path in Path(url).rglob("*") if path.suffix in (".arrow", ".safetensors")]
    return {
        "made": made,
        "raw": seconds(raw) / scored,
        "read": seconds(lambda: [labels for _, labels in source.epoch(0)]),
        "examples": job.num_examples,
        "bytes": sum(path.stat().st_size for path in files),
        "scores_made": dataset.num_users * (DEPTH + job.pool) + dataset.manifest["num_interactions"]["train"] if by_user else 0,
    }


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--users", type=int, default=50_000)
    parser.add_argument("--items", type=int, default=20_000)
    parser.add_argument("--dim", type=int, default=64)
    parser.add_argument("--repeats", type=int, default=3)
    options = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as name:
        dataset, vectors, job = build(Path(name), options)
        found = {name: [] for name in VARIANTS}
        for _ in range(options.repeats):
            for variant, words in VARIANTS.items():
                found[variant].append(measure(Path(name), dataset, vectors, job, words))
    width = 33
    print("| labels | lists (by user: scores) made a second | of the raw limit | bytes a candidate | lists read a second | a step |")
    print("|---|---:|---:|---:|---:|---:|")
    for variant, rows in found.items():
        median = {key: statistics.median(row[key] for row in rows) for key in rows[0]}
        if median["scores_made"]:  # a list is 33 scores of the raw limit
            rate = median["scores_made"] / median["made"]
            limit, size = width / median["raw"], "once " + f"{median['bytes'] / median['scores_made']:.1f}"
        else:
            rate, limit, size = median["examples"] / median["made"], 1 / median["raw"], f"{median['bytes'] / median['examples'] / 32:.2f}"
        read = median["examples"] / median["read"]
        print(f"| {variant} | {rate:,.0f} | {rate / limit:.2f} | {size} | {read:,.0f} | {BATCH / read * 1000:.1f} ms |", flush=True)


if __name__ == "__main__":
    main()
