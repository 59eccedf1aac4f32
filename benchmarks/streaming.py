"""Labels that are streamed to a student beside the same labels read from files: time of an epoch, waiting, and memory of every process.

    python benchmarks/streaming.py [--users 20000] [--items 10000] [--epochs 16] [--folder DIR]

A generated catalog on an embedded Ray cluster, one student's worker and one labeler of one core each, d = 64, lists of 32 candidates, half
of them from the teacher's ranking, two modalities. The student is trained twice: with labels that were written for all of its epochs, which
lie in the page cache, and with streamed ones. An epoch's seconds and its share of waiting are the student's own record; medians over the
epochs after the first. While labels are streamed, the anonymous and the shared memory of the worker, of the labeler and of the object
store's process is sampled every second; the table has the medians of the second, third and last quarter of the time that a process was
seen. Shared memory is the object store's, of bounded size: a process counts each page of it that it has touched, and all touch the same.
"""

import argparse
import json
import shutil
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import memory
import psutil

ROLES = {"student's worker": "RayTrainWorker", "labeler": "MapWorker", "raylet": "raylet/raylet", "command": "promptmm.jobs.cli"}
WORDS = [
    "teacher.dim=64",
    "teacher.train.epochs=1",
    "student.dim=64",
    "student.train.evaluate_every=1000000",
    "distill.num_uniform=16",
    "distill.num_top=16",
    "labels.scores=uint8",
    "cluster.threads=1",
]


def command(verb: str, folder: Path, words: list[str]) -> list[str]:
    return [sys.executable, "-m", "promptmm.jobs.cli", verb, "demo", f"run.dir={folder}", *words]


def call(verb: str, folder: Path, words: list[str]) -> None:
    if subprocess.run(command(verb, folder, words), stdout=subprocess.DEVNULL, check=False).returncode:
        raise SystemExit(f"{verb} failed")


def rows_of(folder: Path) -> list[dict]:
    """The student's record of its epochs."""
    return [json.loads(line) for line in (folder / "training/student/metrics.jsonl").read_text().splitlines()]


class Watch:
    """Samples the memory of the processes below one: MiB by role and kind, the most of a role's processes at each time."""

    def __init__(self, pid: int) -> None:
        self.root = psutil.Process(pid)
        self.found = {(role, kind): [] for role in ROLES for kind in ("RssAnon", "RssShmem")}
        threading.Thread(target=self._watch, daemon=True).start()

    def _watch(self) -> None:
        while self.root.is_running():
            mib = dict.fromkeys(self.found, 0.0)
            try:
                for process in [self.root, *self.root.children(recursive=True)]:
                    words = " ".join(process.cmdline())
                    found = memory.resident(process.pid)
                    for role, kind in (key for key in mib if ROLES[key[0]] in words):
                        mib[role, kind] = max(mib[role, kind], found.get(kind, 0.0))
            except psutil.Error:
                continue
            for key, value in mib.items():
                if value:
                    self.found[key].append(value)
            time.sleep(1)


def main() -> None:
    """Prints both tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--users", type=int, default=20_000)
    parser.add_argument("--items", type=int, default=10_000)
    parser.add_argument("--epochs", type=int, default=16)
    parser.add_argument("--folder", type=Path)
    options = parser.parse_args()
    if options.folder:
        options.folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=options.folder) as name:
        run, streamed = Path(name) / "files", Path(name) / "streamed"
        sizes = [f"source.synthetic_num_users={options.users}", f"source.synthetic_num_items={options.items}"]
        epochs = [f"student.train.epochs={options.epochs}", f"student.train.patience={options.epochs}", f"labels.epochs={options.epochs}"]
        words = [*WORDS, *sizes, *epochs]
        for verb in ("prepare", "partition", "train-teacher", "label"):
            call(verb, run, words)
        shutil.copytree(run, streamed, ignore=shutil.ignore_patterns("labels"))
        call("distill", run, words)
        with subprocess.Popen(command("distill", streamed, [*words, "labels.mode=streamed"]), stdout=subprocess.DEVNULL) as process:
            watch = Watch(process.pid)
        if process.returncode:
            raise SystemExit("distill failed")
        found = {"files": rows_of(run)[1:], "streamed": rows_of(streamed)[1:]}
        examples = json.loads((run / "dataset/manifest.json").read_text())["num_interactions"]["train"]
    seconds = {way: statistics.median(row["seconds"] for row in rows) for way, rows in found.items()}
    print(f"{examples:,} lists an epoch, {examples * 32 * options.epochs:,} labels in all\n")
    print("| labels | an epoch, s | lists a second | waiting | to files |\n|---|---:|---:|---:|---:|")
    for way, rows in found.items():
        waiting = statistics.median(row["waiting"] for row in rows)
        print(f"| {way} | {seconds[way]:.2f} | {examples / seconds[way]:,.0f} | {waiting:.1%} | {seconds[way] / seconds['files']:.2f} |")
    print("\n| process | memory | second quarter, MiB | third | last |\n|---|---|---:|---:|---:|")
    for (role, kind), mib in watch.found.items():
        quarter = len(mib) // 4
        if quarter:
            what = "anonymous" if kind == "RssAnon" else "shared"
            medians = [statistics.median(mib[first : first + quarter]) for first in (quarter, 2 * quarter, len(mib) - quarter)]
            print(f"| {role} | {what} | {' | '.join(f'{median:,.0f}' for median in medians)} |")


if __name__ == "__main__":
    main()
