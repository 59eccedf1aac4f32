"""Lists from a pool of Ray Data actors: those of one process, and only the parts that are left."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from promptmm.core import load_student
from promptmm.core.graph import Csr
from promptmm.core.lists import ListJob, PartWriter, begin_lists, make_parts
from promptmm.core.serving import Recommender, write_bundle
from promptmm.distributed.config import ClusterConfig
from promptmm.distributed.execution.list_pool import make_parts_on_ray

NUM_USERS, NUM_ITEMS = 100, 50


def begun(student: Recommender, bundle: Path, folder: Path) -> ListJob:
    """A job of seven parts."""
    rows = torch.arange(NUM_USERS).flip(0)
    job = begin_lists(str(bundle), student, str(folder), rows, 5, True, None, False)
    assert job is not None
    return replace(job, users_a_part=16)


@pytest.mark.whole
def test_a_pool_completes_lists_as_one_process_does(ray_cluster, tmp_path):
    generator = torch.Generator().manual_seed(0)
    users, items = (torch.randn(count, 8, generator=generator) for count in (NUM_USERS, NUM_ITEMS))
    train = Csr.from_pairs(torch.arange(NUM_USERS), torch.arange(NUM_USERS) % NUM_ITEMS, NUM_USERS, NUM_ITEMS)
    bundle, here, pool = (tmp_path / name for name in ("student", "here", "pool"))
    write_bundle(str(bundle), users, items, [f"u{n}" for n in range(NUM_USERS)], [f"i{n}" for n in range(NUM_ITEMS)], train, {}, {})
    student = load_student(str(bundle))
    assert sum(make_parts(begun(student, bundle, here), student)) == NUM_USERS
    job = begun(student, bundle, pool)
    PartWriter(job, student).write(3)
    made_before = (pool / "part-00003.parquet").stat().st_mtime_ns
    make_parts_on_ray(job, ClusterConfig(num_labelers=2, threads=1))
    assert {path.name: path.read_bytes() for path in pool.iterdir()} == {path.name: path.read_bytes() for path in here.iterdir()}
    assert len(list(pool.glob("part-*.parquet"))) == 7
    assert (pool / "part-00003.parquet").stat().st_mtime_ns == made_before
