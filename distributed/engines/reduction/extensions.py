"""Prepares what DeepSpeed compiles on a CPU, once for a Python environment."""

import contextlib
import importlib.util
import os
import sys
import time
from pathlib import Path

import torch

STALE_SECONDS = 300.0  # a compilation takes about one minute


def prepare_extensions() -> None:
    """Loads what DeepSpeed has compiled for this Python environment and torch, so that it does not start ninja in every process.

    Each environment has a cache of its own, since environments that shared the user's cache would compile again in turns. The environment's
    ninja is put first on the path, since another version of ninja does not read its log and compiles again. A compiled module is loaded
    directly, since torch's loader would wait for ever for the lock of a process that was killed while it compiled.
    """
    from deepspeed.ops.op_builder.builder import OpBuilder
    from deepspeed.ops.op_builder.cpu import ShareMemCommBuilder

    tools = os.path.dirname(sys.executable)
    if tools not in os.environ.get("PATH", "").split(os.pathsep):
        os.environ["PATH"] = os.pathsep.join([tools, os.environ.get("PATH", "")])
    if os.access(sys.prefix, os.W_OK):
        os.environ.setdefault("TORCH_EXTENSIONS_DIR", os.path.join(sys.prefix, "torch_extensions", torch.__version__))
    cache, name = os.environ.get("TORCH_EXTENSIONS_DIR"), ShareMemCommBuilder.NAME
    if cache is None or name in OpBuilder._loaded_ops:
        return
    built, lock = Path(cache, name, f"{name}.so"), Path(cache, name, "lock")
    with contextlib.suppress(FileNotFoundError):
        while time.time() - lock.stat().st_mtime < STALE_SECONDS:  # another process compiles, or was killed while it did
            time.sleep(0.5)
        lock.unlink()
    if not built.exists():
        return
    try:
        spec = importlib.util.spec_from_file_location(name, built)
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
    except ImportError:  # the file is cut short or was made for another torch: DeepSpeed compiles it again
        built.unlink(missing_ok=True)
        return
    OpBuilder._loaded_ops[name] = module


def compile_collective() -> None:
    """Compiles DeepSpeed's shared-memory collective for CPUs, once for an environment; this needs a C++ compiler."""
    prepare_extensions()
    from deepspeed.ops.op_builder.cpu import ShareMemCommBuilder

    ShareMemCommBuilder().load(verbose=False)
