"""`python tests/golden/record.py OUT.json [--data DIR] [NAME ...]`: trains the golden runs and writes their curves.

Runs of one worker are trained in this process, those of two on Ray. Without names all are recorded; with names only those, beside what
OUT.json has already. DIR holds the real data sets (a folder tiktok in it); without it the run on TikTok is left out. Record again only
where training is meant to change, and say so in the commit.
"""

import json
import sys
import tempfile
from pathlib import Path

from promptmm.distributed.config import ClusterConfig
from promptmm.distributed.execution.session import ray_session

sys.path.insert(0, str(Path(__file__).parent))
from runs import LARGE_RUNS, LOCAL, SMALL_RUNS, TINY, TWO_WORKERS, kernels, read_curves, train


def record(out: Path, data: Path | None, names: list[str]) -> None:
    """Trains golden runs and writes what they gave, one after the other."""
    runs = {name: [*TINY, *words, LOCAL] for name, words in SMALL_RUNS.items()}
    runs |= {name: [*words, LOCAL] for name, words in LARGE_RUNS.items()}
    runs |= {name: [*TINY, *words] for name, words in TWO_WORKERS.items()}
    found: dict = json.loads(out.read_text()) if names and out.exists() else {"curves": {}}
    assert found.get("kernels", kernels()) == kernels(), "recorded elsewhere: record all of them"
    found["kernels"] = kernels()
    for name, words in runs.items():
        if (names and name not in names) or (name == "tiktok" and data is None):
            continue
        more = [f"source.path={data / 'tiktok'}"] if name == "tiktok" else []
        with tempfile.TemporaryDirectory() as folder:
            if name in TWO_WORKERS:
                with ray_session(ClusterConfig(num_workers=2, num_labelers=1)):
                    train(Path(folder) / "run", *words, *more)
            else:
                train(Path(folder) / "run", *words, *more)
            found["curves"][name] = read_curves(Path(folder) / "run")
        out.write_text(json.dumps(found, indent=1, sort_keys=True) + "\n")


if __name__ == "__main__":
    words = sys.argv[1:]
    at = words.index("--data") if "--data" in words else None
    data = Path(words[at + 1]) if at is not None else None
    names = [word for i, word in enumerate(words[1:], 1) if at is None or i not in (at, at + 1)]
    record(Path(words[0]), data, names)
