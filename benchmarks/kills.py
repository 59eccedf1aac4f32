"""Kills processes while labels are made and a student learns from them, and compares what comes out with an undisturbed run.

    python benchmarks/kills.py [--kills 20] [--seed 0] [--folder DIR]

A small generated catalog on an embedded Ray cluster, one worker. An undisturbed run trains a teacher; then `label` and `distill` are run
for each way that labels reach the student: materialised, by user, and streamed. For every kill both verbs are run again beside a copy of
the teacher. At a drawn moment of a drawn verb a drawn process gets SIGKILL: a labeler, a student's worker, or the driver, the command
itself. A command that ends with an error is given again, as a person would. In the end the student's vectors have to be equal to the
undisturbed one's to the last bit, and the labels' manifest, which counts their rows and has every file's checksum, has to be the same.
"""

import argparse
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import psutil

WAYS = {
    "materialised": ["labels.mode=materialised"],
    "by user": ["labels.by=users", "labels.pool=50"],
    "streamed": ["labels.mode=streamed"],
}
VICTIMS = {"labeler": ("MapWorker",), "worker": ("RayTrainWorker",)}  # by words of their command line; the driver is the command
WORDS = [
    "source.synthetic_num_users=3000",
    "source.synthetic_num_items=1500",
    "teacher.train.epochs=2",
    "student.train.epochs=12",
    "student.train.patience=12",
    "student.train.checkpoint_every=2",
    "distill.num_uniform=16",
    "distill.num_top=16",
    "labels.epochs=6",
    "labels.block_rows=4096",
]
DEADLINE, ATTEMPTS = 600, 4


def command(verb: str, folder: Path, words: list[str]) -> subprocess.Popen:
    """Starts a verb."""
    words = [sys.executable, "-m", "promptmm.jobs.cli", verb, "demo", *WORDS, *words, f"run.dir={folder}"]
    return subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True)


def run(verb: str, folder: Path, words: list[str]) -> float:
    """Runs a verb to its end; returns its seconds.

    Raises:
        SystemExit: it failed.
    """
    started, process = time.monotonic(), command(verb, folder, words)
    said, _ = process.communicate(timeout=DEADLINE)
    if process.returncode:
        raise SystemExit(f"{verb} failed:\n{said}")
    return time.monotonic() - started


def victims(process: subprocess.Popen, kind: str) -> list[psutil.Process]:
    """Returns the processes of a kind that work for a command."""
    if kind == "driver":
        return [psutil.Process(process.pid)]
    found = []
    for child in psutil.Process(process.pid).children(recursive=True):
        try:
            line = " ".join(child.cmdline())
        except psutil.Error:  # it has just ended
            continue
        if any(word in line for word in VICTIMS[kind]):
            found.append(child)
    return found


def disturbed(verb: str, folder: Path, words: list[str], kind: str, moment: float, draw: random.Random) -> tuple[bool, int]:
    """Runs a verb and kills a process of a kind after so many seconds, or when there is one; returns whether it did, and the repeats."""
    process, started, killed = command(verb, folder, words), time.monotonic(), False
    while process.poll() is None and not killed:
        time.sleep(0.02)
        if time.monotonic() - started < moment:
            continue
        try:
            found = victims(process, kind)
        except psutil.Error:
            continue
        if found:
            draw.choice(found).send_signal(signal.SIGKILL)
            killed = True
    process.communicate(timeout=DEADLINE)
    repeats = 0
    while process.returncode and repeats < ATTEMPTS:
        repeats += 1
        process = command(verb, folder, words)
        process.communicate(timeout=DEADLINE)
    if process.returncode:
        raise SystemExit(f"{verb} did not end well after {ATTEMPTS} repeats")
    return killed, repeats


def left(folder: Path) -> tuple[bytes, bytes]:
    """Returns the student's vectors and the labels' manifest, which is empty where labels were streamed."""
    manifest = folder / "labels" / "rev-0" / "manifest.json"
    return (
        folder / "training" / "student" / "model" / "vectors.safetensors"
    ).read_bytes(), manifest.read_bytes() if manifest.exists() else b""


def main() -> None:
    """Prints a line for every kill, and how many were equal."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--folder", type=Path, help="where the runs go; by default the system's folder for temporary files")
    options = parser.parse_args()
    draw, equal, hit = random.Random(options.seed), 0, 0
    if options.folder:
        options.folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=options.folder) as name:
        base = Path(name) / "base"
        for verb in ("prepare", "train-teacher"):
            run(verb, base, ["cluster.executor=local"])
        undisturbed, spent = {}, {}
        for way, words in WAYS.items():
            folder = Path(name) / "undisturbed"
            shutil.copytree(base, folder)
            spent[way] = {verb: run(verb, folder, words) for verb in ("label", "distill")}
            undisturbed[way] = left(folder)
            shutil.rmtree(folder)
        print("| kill | labels | in | after s | killed | repeats | student and labels |\n|---:|---|---|---:|---|---:|---|", flush=True)
        for number in range(options.kills):
            way = list(WAYS)[number % len(WAYS)]
            verb = "distill" if way == "streamed" else draw.choice(["label", "distill"])
            kinds = ["labeler", "driver"] if verb == "label" else ["worker", "driver", *(["labeler"] if way == "streamed" else [])]
            kind, moment, folder = draw.choice(kinds), draw.uniform(0.3, 0.95) * spent[way][verb], Path(name) / "run"
            shutil.copytree(base, folder)
            for each in ("label", "distill"):
                if each == verb:
                    killed, repeats = disturbed(verb, folder, WAYS[way], kind, moment, draw)
                else:
                    run(each, folder, WAYS[way])
            same = left(folder) == undisturbed[way]
            shutil.rmtree(folder)
            equal, hit = equal + same, hit + killed
            who = kind if killed else f"no {kind} was there"
            print(f"| {number} | {way} | {verb} | {moment:.1f} | {who} | {repeats} | {'equal' if same else 'DIFFERENT'} |", flush=True)
    print(f"\n{equal} of {options.kills} equal to the undisturbed run, {hit} killed")
    raise SystemExit(equal < options.kills)


if __name__ == "__main__":
    main()
