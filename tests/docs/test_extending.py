"""The examples of docs/extending.md, as they stand: each is written into a module, and its command is run."""

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


def sections() -> dict[str, tuple[str, list[str]]]:
    """Module text and words of the command by section's title, of the sections that have both."""
    found = {}
    for section in PAGE.read_text().split("\n## ")[1:]:
        code, command = (re.search(rf"```{kind}\n(.*?)```", section, re.S) for kind in ("python", "sh"))
        if code and command:
            found[section.splitlines()[0]] = code.group(1), shlex.split(command.group(1))
    return found


SECTIONS = sections()


def test_every_kind_of_part_has_an_example():
    assert len(SECTIONS) == 8
    assert all(command[0] == "promptmm" for _, command in SECTIONS.values())


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    """A prepared run, for the verb of one's own."""
    run = tmp_path_factory.mktemp("prepared") / "demo"
    call(run.parent, ["prepare", "demo", *SMALL, f"run.dir={run}"])
    return run


def call(folder: Path, words: list[str]) -> str:
    """Runs `promptmm` in a folder; returns what it printed."""
    ended = subprocess.run([sys.executable, "-m", "promptmm.jobs.cli", *words], cwd=folder, capture_output=True, text=True, timeout=300)
    assert ended.returncode == 0, ended.stderr[-2000:]
    return ended.stdout


@pytest.mark.parametrize("title", SECTIONS)
def test_the_example_runs(title, tmp_path, prepared):
    code, command = SECTIONS[title]
    (tmp_path / "my_parts.py").write_text(code)
    words = [word.replace("runs/demo", str(prepared)).replace("runs/mine", str(tmp_path / "mine")) for word in command[1:]]
    if "source.path=DIR" in words:
        with open(tmp_path / "log.csv", "w", newline="") as file:
            rows = csv.writer(file)
            rows.writerow(["who", "what"])
            rows.writerows((f"u{user}", f"i{(user * 7 + step * 3) % 60}") for user in range(40) for step in range(10))
        words[words.index("source.path=DIR")] = f"source.path={tmp_path}"
    if words[0] == "pipeline":
        words += [*SMALL, f"run.dir={tmp_path / 'run'}"]
    said = call(tmp_path, words)
    assert {"A tracker": "LOSS", "A verb": "120 users", "A source format": "40 users"}.get(title, "bundle to serve") in said
