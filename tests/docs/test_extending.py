"""The examples of docs/extending.md, as they stand: each is written into the file that it names, and its commands are run."""

import csv
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

PAGE = Path(__file__).resolve().parents[2] / "docs" / "extending.md"
SMALL = [
    "source.synthetic_num_users=120", "source.synthetic_num_items=80", "source.synthetic_interactions_per_user=12", "teacher.dim=8",
    "student.dim=8", "teacher.train.epochs=2", "student.train.epochs=2", "labels.epochs=1", "cluster.executor=local", "cluster.threads=1",
]  # fmt: skip


def sections() -> dict[str, tuple[str, list[list[str]]]]:
    """File's text and words of the commands by section's title, of the sections that have both."""
    found = {}
    for section in PAGE.read_text().split("\n## ")[1:]:
        code, commands = (re.search(rf"```{kind}\n(.*?)```", section, re.S) for kind in ("python", "sh"))
        if code and commands:
            found[section.splitlines()[0]] = code.group(1), [shlex.split(line) for line in commands.group(1).splitlines()]
    return found


SECTIONS = sections()


def test_every_kind_of_part_has_an_example():
    assert len(SECTIONS) == 9
    assert all(commands[-1][0] == "promptmm" for _, commands in SECTIONS.values())


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    """A prepared run, for the verb of one's own."""
    run = tmp_path_factory.mktemp("prepared") / "demo"
    call(run.parent, ["promptmm", "prepare", "demo", *SMALL, f"run.dir={run}"])
    return run


def call(folder: Path, words: list[str]) -> str:
    """Runs `promptmm` or `python` in a folder; returns what it printed."""
    program = {"promptmm": ["-m", "promptmm.jobs.cli"], "python": []}[words[0]]
    ended = subprocess.run([sys.executable, *program, *words[1:]], cwd=folder, capture_output=True, text=True, timeout=300)
    assert ended.returncode == 0, ended.stderr[-2000:]
    return ended.stdout


@pytest.mark.parametrize("title", SECTIONS)
def test_the_example_runs(title, tmp_path, prepared):
    code, commands = SECTIONS[title]
    (tmp_path / code.splitlines()[0].removeprefix("# ")).write_text(code)
    for command in commands:
        said = run_command(command, tmp_path, prepared)
    assert {"A tracker": "LOSS", "A verb": "120 users", "A source format": "40 users"}.get(title, "bundle to serve") in said


def run_command(command: list[str], tmp_path: Path, prepared: Path) -> str:
    """Runs a command of an example on a small catalog; returns what it printed."""
    words = [word.replace("runs/demo", str(prepared)).replace("runs/mine", str(tmp_path / "mine")) for word in command]
    if "source.path=DIR" in words:
        with open(tmp_path / "log.csv", "w", newline="") as file:
            rows = csv.writer(file)
            rows.writerow(["who", "what"])
            rows.writerows((f"u{user}", f"i{(user * 7 + step * 3) % 60}") for user in range(40) for step in range(10))
        words[words.index("source.path=DIR")] = f"source.path={tmp_path}"
    if words[1] == "pipeline":
        words += [*SMALL, *([] if any(word.startswith("run.dir=") for word in words) else [f"run.dir={tmp_path / 'run'}"])]
    elif "source.format=synthetic" in words:
        words += SMALL
    return call(tmp_path, words)
