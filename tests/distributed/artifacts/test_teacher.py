"""The teacher artifact: rows in shards come back as they were, and damage is named."""

import pytest
import torch
from promptmm.core.errors import InputError
from promptmm.core.vectors import TeacherVectors
from promptmm.distributed.artifacts import teacher as module
from promptmm.distributed.worker import Worker

USERS, ITEMS = 23, 17


@pytest.fixture
def written(tmp_path, monkeypatch):
    """Revision 2 of random vectors in shards of 5 rows, and the vectors."""
    monkeypatch.setattr(module, "ROWS_A_SHARD", 5)
    generator = torch.Generator().manual_seed(0)
    user, item, of_user, of_item = (torch.randn(n, 4, generator=generator) for n in (USERS, ITEMS, USERS, ITEMS))
    vectors = TeacherVectors(user, item, {"visual": of_user}, {"visual": of_item}, None, None, {})
    output = module.output_of_vectors(Worker(0, 1, torch.device("cpu"), ("here",)), vectors)
    module.write_revision(str(tmp_path), 2, output, {"bias": torch.ones(3)}, {"regime": "inline"})
    return str(tmp_path), vectors


def test_shards_hold_all_rows(written):
    url, vectors = written
    found = module.read_revision(url, 2)
    assert torch.equal(found.vectors.user, vectors.user)
    assert torch.equal(found.vectors.item, vectors.item)
    assert torch.equal(found.vectors.modal_user["visual"], vectors.modal_user["visual"])
    assert found.vectors.prompt_item is None
    assert torch.equal(found.prompt["bias"], torch.ones(3))


def test_rows_are_read_across_shards(written):
    url, vectors = written
    rows = torch.tensor([16, 0, 4, 5, 0, 11])
    assert torch.equal(module.modal_item_rows(url, 2)["visual"][rows], vectors.modal_item["visual"][rows])
    users, items = module.final_rows(url, 2)
    assert torch.equal(users[rows], vectors.user[rows])
    assert torch.equal(items[rows[:0]], vectors.item[:0])


def test_a_revision_that_is_not_there_or_damaged_is_refused(written, tmp_path):
    url, _ = written
    with pytest.raises(InputError):
        module.read_revision(url, 1)
    shard = tmp_path / "rev-2" / "item-00001.safetensors"
    shard.write_bytes(shard.read_bytes()[:-4])
    with pytest.raises(InputError, match=r"item-00001\.safetensors"):
        module.read_revision(url, 2)
