"""How much memory this host, or the container around this process, has."""

import os
from pathlib import Path


def memory_limit() -> int:
    """Returns the bytes of memory that processes here may use together: the machine's, or a container's limit where that is less."""
    limit = Path("/sys/fs/cgroup/memory.max")
    limits = [int(text) for text in ([limit.read_text().strip()] if limit.exists() else []) if text.isdigit()]
    return min([os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"), *limits])
