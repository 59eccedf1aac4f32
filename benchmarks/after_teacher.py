"""Memory and rates of what comes after the teacher, on a generated catalog: rankings, labels by example and by user, evaluation.

    python benchmarks/after_teacher.py [--users 1000000 10000000] [--items 1000000] [--dim 64] [--folder DIR]

For each number of users the script writes a dataset with ten train items a user, and a teacher's artifact of random vectors (final and of
one modality), and ranks it at random, which costs nothing and reads the same. Then each role works in a process of its own with one thread:
the real labeler, ranker and evaluator on a share of their work. Printed are its largest anonymous memory (RssAnon, sampled at 50 Hz) less
what it has with its libraries loaded, that with them, and its rate. The last column is what the whole would take eight such processes.
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

TRAIN_ITEMS, DEPTH, POOL, HELD_OUT_USERS = 10, 100, 200, 4096
RANKED_USERS, STEPS_A_BLOCK, BATCH = 2048, 64, 1024
ROLES = ("ranker", "labeler by example", "labeler by user", "evaluator")


def write_catalog(folder: Path, users: int, items: int) -> None:
    """Writes dataset/ with its train rows, and a test split of some users, a million users in memory at a time."""
    import pyarrow as pa
    import pyarrow.parquet as pq
    from promptmm.core.artifact import write_artifact
    from promptmm.graph_store.mapped_rows import pair_chunks, rows_name, write_rows

    random, step = np.random.default_rng(0), 1 << 20
    schema = pa.schema({"user": pa.int32(), "item": pa.int32()})
    counts = {"train": users * TRAIN_ITEMS, "validation": 0, "test": HELD_OUT_USERS}
    facts = {"num_users": users, "num_items": items, "source": {}, "num_interactions": counts, "modalities": {}}
    with write_artifact(str(folder / "dataset"), "dataset", facts) as target:
        (target / "interactions").mkdir()
        for name, count in (("users", users), ("items", items)):
            with pq.ParquetWriter(target / f"{name}.parquet", pa.schema({"index": pa.int64(), "id": pa.string()})) as writer:
                for first in range(0, count, step):
                    index = pa.array(np.arange(first, min(first + step, count)))
                    writer.write_table(pa.table({"index": index, "id": index.cast(pa.string())}))
        stride = items // TRAIN_ITEMS  # an item of each stretch of the catalog, so that a user's are distinct and ascending
        for split, of_split in (("train", users), ("test", HELD_OUT_USERS)):
            path = target / "interactions" / f"{split}.parquet"
            with pq.ParquetWriter(path, schema) as writer:
                for first in range(0, of_split, step):
                    ids = np.arange(first, min(first + step, of_split), dtype=np.int32)
                    width = TRAIN_ITEMS if split == "train" else 1
                    chosen = random.integers(0, stride, (len(ids), width)) + stride * np.arange(width)
                    columns = np.repeat(ids, width), chosen.astype(np.int32).ravel()
                    writer.write_table(pa.table({"user": columns[0], "item": columns[1]}, schema=schema))
            write_rows(path.with_name(rows_name(split)), pair_chunks(path), users, counts[split])


def write_teacher(folder: Path, users: int, items: int, dim: int) -> None:
    """Writes revision 0 of random vectors in the teacher's own shards, and random rankings of all users."""
    import hashlib

    import torch
    from promptmm.core.artifact import ShardWriter, publish_manifest
    from promptmm.distributed.artifacts.row_shards import ROWS_A_SHARD
    from promptmm.distributed.labels.rankings import made_with, num_ranges, range_size, rankings_url, users_of_range
    from promptmm.distributed.messages import RankingJob
    from promptmm.graph_store.dataset import open_dataset
    from safetensors.torch import save

    url = str(folder / "teacher" / "rev-0")
    writer, generator = ShardWriter(url), torch.Generator().manual_seed(0)
    for side, count in (("user", users), ("item", items)):
        for shard, first in enumerate(range(0, count, ROWS_A_SHARD)):
            rows = min(ROWS_A_SHARD, count - first)
            tensors = {name: torch.randn(rows, dim, generator=generator) for name in ("final", "modal.text")}
            writer.add(f"{side}-{shard:05d}.safetensors", save(tensors))
    facts = {"revision": 0, "modalities": ["text"], "rows_a_shard": ROWS_A_SHARD}
    publish_manifest(url, "teacher-vectors", facts, writer.files)
    job = RankingJob(str(folder / "dataset"), str(folder / "teacher"), 0, DEPTH)
    target, files = Path(rankings_url(job)), {}
    target.mkdir()
    scorers = ["scores", "scores.text"]
    random = np.random.default_rng(1)
    for number in range(num_ranges(users)):
        shape = users_of_range(number, users).numel(), DEPTH
        ranked = torch.from_numpy(random.integers(0, items, shape, dtype=np.int32))
        for kind, tensors in (
            ("items", {"items": ranked}),
            ("scores", {name: torch.randn(shape, generator=generator) for name in scorers}),
        ):
            data, name = save(tensors), f"{kind}-{number:05d}.safetensors"
            (target / name).write_bytes(data)
            files[name] = {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
    dataset = open_dataset(str(folder / "dataset"))
    made = {"depth": DEPTH, "columns": DEPTH, "scorers": scorers, "users_a_range": range_size(users), "made_with": made_with(job, dataset)}
    publish_manifest(str(target), "rankings", made, files)


def work(role: str, folder: Path, out: Path) -> dict[str, float]:
    """Does a role's work in this process: `units` of it in `seconds`, out of `whole`."""
    import torch
    from promptmm.core.config import DistillationConfig, EvaluationConfig
    from promptmm.distributed.execution.evaluation import rank_share
    from promptmm.distributed.labels.labeler import Labeler
    from promptmm.distributed.labels.rankings import Ranker, range_size
    from promptmm.distributed.labels.user_labels import UserLabeler
    from promptmm.distributed.messages import EvaluationJob, LabelJob, StoredScores
    from promptmm.graph_store.dataset import open_dataset

    torch.set_num_threads(1)
    dataset, urls = open_dataset(str(folder / "dataset")), (str(folder / "dataset"), str(folder / "teacher"))
    count = dataset.manifest["num_interactions"]["train"]
    config = DistillationConfig(num_uniform=16, num_top=16, top_depth=DEPTH)
    by = "users" if role == "labeler by user" else "examples"
    job = LabelJob(*urls, 0, config, BATCH, STEPS_A_BLOCK, count, 0, scores="uint8", by=by, pool=POOL)
    if role == "evaluator":
        evaluation = EvaluationJob(urls[0], StoredScores(str(folder), "teacher"), "test", EvaluationConfig(cutoffs=[20]), 1)
        started = time.perf_counter()
        rank_share(evaluation, 0, 1)
        return {"units": HELD_OUT_USERS, "whole": dataset.num_users, "seconds": time.perf_counter() - started}
    if role == "ranker":
        ranker = Ranker(job.rankings, dataset)
        started = time.perf_counter()
        ranker._best(torch.arange(RANKED_USERS))
        return {"units": RANKED_USERS, "whole": dataset.num_users, "seconds": time.perf_counter() - started}
    if role == "labeler by user":
        labeler = UserLabeler(job, dataset)
        started = time.perf_counter()
        labeler.write(str(out), {"range": 0})
        return {
            "units": min(range_size(dataset.num_users), dataset.num_users),
            "whole": dataset.num_users,
            "seconds": time.perf_counter() - started,
        }
    blocks = Labeler(job, dataset)
    started = time.perf_counter()
    for block in range(4):
        blocks.write(str(out), {"epoch": 0, "block": block})
    return {"units": 4 * STEPS_A_BLOCK * BATCH, "whole": count, "seconds": time.perf_counter() - started}


def run_role(role: str, folder: Path) -> None:
    """Prints the memory and the rate of a role as JSON."""
    import memory
    import promptmm.distributed.execution.evaluation
    import promptmm.distributed.labels.labeler  # noqa: F401 - the libraries, before the base is read

    peak = memory.Peak(lambda: memory.resident().get("RssAnon", 0.0), 0.02)
    with tempfile.TemporaryDirectory(dir=folder) as out:
        found = work(role, folder, Path(out))
    print("FOUND " + json.dumps({**found, "base": peak.base, "highest": peak.highest}))


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--users", type=int, nargs="+", default=[1_000_000, 10_000_000])
    parser.add_argument("--items", type=int, default=1_000_000)
    parser.add_argument("--dim", type=int, default=64)
    parser.add_argument("--folder", type=Path, help="where the generated files go; by default the system's folder for temporary ones")
    parser.add_argument("--role", choices=ROLES, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.role:
        run_role(options.role, options.folder)
        return
    print(
        "| role | users | anonymous memory beyond its libraries, MiB | with them | units a second | the whole, hours of eight processes |"
    )
    print("|---|---:|---:|---:|---:|---:|", flush=True)
    for users in options.users:
        if options.folder:
            options.folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=options.folder) as name:
            folder = Path(name)
            write_catalog(folder, users, options.items)
            write_teacher(folder, users, options.items, options.dim)
            for role in ROLES:
                words = [sys.executable, __file__, "--role", role, "--folder", name]
                done = subprocess.run(words, capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
                if done.returncode:
                    raise SystemExit(done.stderr)
                found = json.loads(done.stdout.split("FOUND ")[1])
                rate = found["units"] / found["seconds"]
                beyond, hours = found["highest"] - found["base"], found["whole"] / rate / 3600 / 8
                print(f"| {role} | {users:,} | {beyond:,.0f} | {found['highest']:,.0f} | {rate:,.0f} | {hours:.2f} |", flush=True)


if __name__ == "__main__":
    main()
