"""Time and anonymous memory of writing, opening and using a serving bundle of generated vectors, at two numbers of users.

    python benchmarks/serving_scale.py --users 1000000 10000000 --items 1000000 --folder DIR

A catalog of raw ids and train interactions is written as dataset/ has them, and a student's vectors as training leaves them. Each measured
step is a process of its own: its largest anonymous memory (RssAnon, sampled) counts, libraries included, and not the pages of mapped
files, which the system drops when it needs room. The folder's content is removed at the end.
"""

import argparse
import json
import shutil
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import memory
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import torch
from promptmm.core.lists import ListJob, PartWriter
from promptmm.core.serving import load_student, write_bundle
from promptmm.core.sides import ITEMS, USERS
from promptmm.core.tensor_file import tensor_file
from promptmm.graph_store.dataset import Dataset
from promptmm.graph_store.mapped_rows import pair_chunks, rows_name, write_rows

ROWS = 1 << 18


def generate(folder: Path, num_users: int, num_items: int, degree: int, dim: int) -> None:
    """Writes raw ids, `degree` train items of every user, and a student's vectors."""
    folder.mkdir(parents=True)
    (folder / "interactions").mkdir()
    rng = np.random.default_rng(0)
    for side, count in (("user", num_users), ("item", num_items)):
        with pq.ParquetWriter(folder / f"{side}s.parquet", pa.schema([("id", pa.string())])) as writer:
            for first in range(0, count, ROWS):
                ids = pa.array(np.arange(first, min(first + ROWS, count))).cast(pa.string())
                writer.write_table(pa.table({"id": pc.binary_join_element_wise(side, ids, "-")}))
    schema, path = pa.schema({"user": pa.int32(), "item": pa.int32()}), folder / "interactions" / "train.parquet"
    with pq.ParquetWriter(path, schema) as writer:
        for first in range(0, num_users, ROWS):
            users = np.arange(first, min(first + ROWS, num_users))
            items = rng.integers(0, num_items // degree, (len(users), degree)) + np.arange(degree) * (num_items // degree)
            pairs = {"user": pa.array(users.repeat(degree), pa.int32()), "item": pa.array(items.ravel(), pa.int32())}
            writer.write_table(pa.table(pairs))
    write_rows(folder / "interactions" / rows_name("train"), pair_chunks(path), num_users, num_users * degree)
    shapes = {"user": ("float32", (num_users, dim)), "item": ("float32", (num_items, dim))}
    with tensor_file(folder / "vectors.safetensors", shapes) as out:
        for rows in out.values():
            for first in range(0, len(rows), ROWS):
                block = rows[first : first + ROWS]
                block[:] = rng.standard_normal(block.shape, np.float32)


def export(folder: Path, num_users: int, num_items: int, degree: int) -> dict:
    """Writes the bundle as the verb `export` does."""
    from safetensors.torch import load_file

    dataset = Dataset(folder, {"num_interactions": {"train": num_users * degree}}, "", num_users, num_items, {})
    vectors = load_file(str(folder / "vectors.safetensors"))
    ids = partial(dataset.id_chunks, USERS), partial(dataset.id_chunks, ITEMS)
    weights = {f"ids.{side}": rows for side, rows in vectors.items()}
    write_bundle(str(folder / "student"), vectors["user"], vectors["item"], *ids, dataset.rows("train"), weights, {})
    return {}


def open_bundle(folder: Path, verify: str) -> dict:
    """Opens the bundle and finds a thousand users."""
    started = time.perf_counter()
    student = load_student(str(folder / "student"), verify=verify)
    opened = time.perf_counter() - started
    step = max(1, len(student.user_ids) // 1000)
    rows = student.rows_of(student.user_ids[::step])
    assert rows.tolist() == list(range(0, len(student.user_ids), step))
    return {"open_seconds": opened}


def recommend(folder: Path, num_users: int, count: int, k: int) -> dict:
    """Makes a part of the lists: of users in the middle."""
    job = ListJob(str(folder / "student"), str(folder / "lists"), k, True, num_users, count, False)
    writer, started = PartWriter(job), time.perf_counter()
    num_lists = writer.write(job.num_parts // 2)
    return {"users_per_second": num_lists / (time.perf_counter() - started)}


def measured(step: str, words: list[str]) -> dict:
    """Does a step in this process; its seconds, the memory before it and the largest, MiB."""
    folder, numbers = Path(words[0]), words[1:]
    torch.set_num_threads(int(numbers.pop()))
    peak = memory.Peak(lambda: memory.resident()["RssAnon"], 0.02)
    started = time.perf_counter()
    if step == "export":
        found = export(folder, *map(int, numbers))
    elif step == "open":
        found = open_bundle(folder, numbers[0])
    else:
        found = recommend(folder, *map(int, numbers))
    seconds = time.perf_counter() - started
    return {**found, "seconds": seconds, "before_mib": peak.base, "peak_mib": max(peak.highest, memory.resident()["RssAnon"])}


def step_of(step: str, *words: object) -> dict:
    """Runs a step in a process of its own."""
    command = [sys.executable, __file__, "--step", step, *map(str, words)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(done.stderr)
    return json.loads(done.stdout.splitlines()[-1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--users", type=int, nargs="+", default=[20_000, 200_000])
    parser.add_argument("--items", type=int, default=20_000)
    parser.add_argument("--degree", type=int, default=5, help="train items of every user")
    parser.add_argument("--lists", type=int, default=1 << 14, help="users of the part of which lists are made")
    parser.add_argument("--k", type=int, default=10)
    parser.add_argument("--dim", type=int, default=64)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--folder", type=Path, help="for what is generated: 1 KiB for each user and item")
    parser.add_argument("--step", nargs=argparse.REMAINDER, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.step:
        print(json.dumps(measured(options.step[0], options.step[1:])), flush=True)
        return
    if options.folder is None:
        raise SystemExit("--folder DIR is needed: a folder with room for the bundles")
    rows = []
    for num_users in options.users:
        folder = options.folder / f"users-{num_users}"
        try:
            generate(folder, num_users, options.items, options.degree, options.dim)
            exported = step_of("export", folder, num_users, options.items, options.degree, options.threads)
            shutil.rmtree(folder / "interactions")
            (folder / "vectors.safetensors").unlink()
            size = sum(path.stat().st_size for path in (folder / "student").iterdir())
            whole = step_of("open", folder, "all", options.threads)
            opened = step_of("open", folder, "changed", options.threads)
            listed = step_of("recommend", folder, num_users, options.lists, options.k, options.threads)
        finally:
            shutil.rmtree(folder, ignore_errors=True)
        rows.append(
            [
                f"{num_users:,}", f"{size / 2**30:.2f}",
                f"{exported['seconds']:.0f}", f"{exported['peak_mib']:.0f}",
                f"{whole['open_seconds']:.1f}", f"{opened['open_seconds']:.2f}", f"{opened['peak_mib']:.0f}",
                f"{listed['users_per_second']:.3g}", f"{listed['peak_mib']:.0f}",
            ]
        )  # fmt: skip
        print(json.dumps({"users": num_users, "export": exported, "all": whole, "open": opened, "recommend": listed}), flush=True)
    heads = ["users", "bundle, GiB", "export, s", "MiB", "open, all checksums, s", "open again, s", "MiB", "lists/s", "MiB"]
    print("\n| " + " | ".join(heads) + " |\n|" + "---:|" * len(heads))
    print("\n".join("| " + " | ".join(row) + " |" for row in rows))


if __name__ == "__main__":
    main()
