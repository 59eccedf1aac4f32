"""Says how long the threads of torch's operations spin while they wait for the next operation.

A training step is many short operations. To put a thread to sleep between them costs nearly half of the speed where a process has its cores
to itself; to let it spin as long as libgomp does by default makes it several times slower where it has not (benchmarks/README.md).
"""

import os

# Environment that libgomp reads when torch is imported; the number has precedence over OMP_WAIT_POLICY.
SPIN_COUNT = "GOMP_SPINCOUNT"
BRIEFLY, NEVER = "1000", "0"


def spin_count(shares_cores: bool = False) -> dict[str, str]:
    """Returns the environment of a process: what the user has set, else brief spins, or none for a process that shares its cores."""
    if shares_cores:
        return {SPIN_COUNT: NEVER}
    if "OMP_WAIT_POLICY" in os.environ and SPIN_COUNT not in os.environ:
        return {}
    return {SPIN_COUNT: os.environ.get(SPIN_COUNT, BRIEFLY)}
