"""Removes what killed commands left in a run's folder: files and folders that were made aside and never took their places."""

import os
import re
import shutil
from pathlib import Path

from ...core.storage import is_local, local_path
from .lease import FILE

ASIDE = re.compile(r"\..+\.[0-9a-f]{8}\.(tmp|old)")  # as core/storage.py and core/artifact.py name them
RAY = os.path.join("training", "ray")  # Ray Train's own files


def remove_leftovers(run_dir: str) -> int:
    """Removes leftovers from a run's folder, whose lease the caller holds: nobody else is at work there.

    Args:
        run_dir: The folder. In one on object storage nothing is made aside.

    Returns:
        How many files and folders were removed.
    """
    if not is_local(run_dir):
        return 0
    count, root = 0, local_path(run_dir)
    shutil.rmtree(root / RAY, ignore_errors=True)
    for folder, names, files in os.walk(root):
        if FILE in files and Path(folder) != root:  # a run of its own, as refit/ is, with a lease of its own
            names.clear()
            continue
        for name in [*names, *files]:
            if ASIDE.fullmatch(name):
                count += 1
                path = Path(folder) / name
                if name in names:
                    names.remove(name)
                    shutil.rmtree(path, ignore_errors=True)
                else:
                    path.unlink(missing_ok=True)
    return count
