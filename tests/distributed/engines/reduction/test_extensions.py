"""What DeepSpeed compiled is loaded without compiling or waiting again."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

SCRIPT = """
from promptmm.distributed.engines.reduction.deepspeed import prepare_extensions
from deepspeed.ops.op_builder.builder import OpBuilder
prepare_extensions()
print("LOADED", sorted(OpBuilder._loaded_ops))
"""


@pytest.mark.parametrize("age", [None, 0, 3600], ids=["no lock", "being compiled", "the lock of a process killed an hour ago"])
def test_a_compiled_module_is_loaded_directly(tmp_path, age):
    source = Path(sys.prefix) / "torch_extensions" / torch.__version__ / "deepspeed_shm_comm"
    if not source.exists():
        pytest.skip("nothing is compiled yet: run python -m promptmm.distributed.warm_up")
    shutil.copytree(source, tmp_path / "deepspeed_shm_comm", ignore=shutil.ignore_patterns("lock"))
    lock = tmp_path / "deepspeed_shm_comm" / "lock"
    if age is not None:
        lock.touch()
        os.utime(lock, (lock.stat().st_mtime - age,) * 2)
    environment = {**os.environ, "DS_ACCELERATOR": "cpu", "TORCH_EXTENSIONS_DIR": str(tmp_path)}
    process = subprocess.Popen([sys.executable, "-c", SCRIPT], env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    if age == 0:
        with pytest.raises(subprocess.TimeoutExpired):  # it waits for the other process
            process.wait(10)
        lock.unlink()
    output, _ = process.communicate(timeout=120)
    assert process.returncode == 0, output
    assert "LOADED ['deepspeed_shm_comm']" in output
    assert not lock.exists()
