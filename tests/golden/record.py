"""`python tests/golden/record.py OUT.json [--data DIR] [NAME ...]`: makes the runs and writes their curves.

DIR holds the real data sets (a folder tiktok in it); without it the run on TikTok is left out. Record again only where training is meant
to change, and say so in the commit.
"""

import json
import sys
import tempfile
from pathlib import Path

from promptmm.distributed.config import ClusterConfig
from promptmm.distributed.launch import ray_session
from promptmm.jobs.cli import main

sys.path.insert(0, str(Path(__file__).parent))
from runs import LARGE_RUNS, SMALL_RUNS, TINY, TWO_WORKERS, kernels, read_curves


def record(out: Path, data: Path | None, names: list[str]) -> None:
    """Runs the pipeline of every golden run, in one Ray session, and writes what it gave."""
    runs = {name: [*TINY, *words] for name, words in {**SMALL_RUNS, **TWO_WORKERS}.items()} | LARGE_RUNS
    found: dict = {"kernels": kernels(), "curves": {}}
    with ray_session(ClusterConfig(num_workers=2, num_labelers=1)):
        for name, words in runs.items():
            if (names and name not in names) or (name == "tiktok" and data is None):
                continue
            more = [f"source.path={data / 'tiktok'}"] if name == "tiktok" else []
            with tempfile.TemporaryDirectory() as folder:
                code = main(["pipeline", *words, *more, f"run.dir={folder}/run"])
                assert code == 0, f"{name}: exit code {code}"
                found["curves"][name] = read_curves(Path(folder) / "run")
            out.write_text(json.dumps(found, indent=1, sort_keys=True) + "\n")


if __name__ == "__main__":
    words = sys.argv[1:]
    at = words.index("--data") if "--data" in words else None
    data = Path(words[at + 1]) if at is not None else None
    names = [word for i, word in enumerate(words[1:], 1) if at is None or i not in (at, at + 1)]
    record(Path(words[0]), data, names)
