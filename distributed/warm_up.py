"""Compiles, as `python -m promptmm.distributed.warm_up`, what DeepSpeed else compiles at its first start on a CPU (about a minute)."""

import os
import sys
import time


def main() -> None:
    """Compiles DeepSpeed's shared-memory collective into this Python environment; does nothing if it is there."""
    os.environ.setdefault("DS_ACCELERATOR", "cpu")
    started = time.monotonic()
    from .engines.reduction.extensions import compile_collective

    compile_collective()
    print(f"DeepSpeed's shared-memory collective is ready ({time.monotonic() - started:.0f} s)", file=sys.stderr)


if __name__ == "__main__":
    main()
