"""The teacher artifact: rows in shards come back as they were, and damage is named."""

import pytest
import torch
from promptmm.core.artifact import read_manifest
from promptmm.core.errors import InputError
from promptmm.core.graph import Csr
from promptmm.core.histories import HistoryScores, Similarities
from promptmm.core.vectors import TeacherVectors
from promptmm.distributed.artifacts import teacher as module
from promptmm.distributed.artifacts.output import HistoryPart, Output, TensorRows
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
    users, items = module.final_scores(url, 2, lambda: pytest.fail("nothing is scored from histories")).rows
    assert torch.equal(users[rows], vectors.user[rows])
    assert torch.equal(items[rows[:0]], vectors.item[:0])


def test_scores_from_histories_are_joined_from_all_shards(tmp_path, monkeypatch):
    """Two parts, with users in several shards; the histories are those of the train items."""
    monkeypatch.setattr(module, "ROWS_A_SHARD", 5)
    pairs = (torch.rand(17, 12, generator=torch.Generator().manual_seed(2)) < 0.3).nonzero(as_tuple=True)
    train = Csr.from_pairs(*pairs, 17, 12)
    parts = []
    for seed in (3, 4):
        generator = torch.Generator().manual_seed(seed)
        rows, columns = (torch.rand(12, 12, generator=generator) < 0.4).nonzero(as_tuple=True)
        similar = Similarities(Csr.from_pairs(rows, columns, 12, 12), torch.randn(rows.numel(), generator=generator))
        parts.append(HistoryScores(torch.rand(17, generator=generator), train, similar))
    nothing = TensorRows(torch.zeros(17, 0)), TensorRows(torch.zeros(12, 0))
    of_artifact = tuple(HistoryPart.of(part) for part in parts)
    output = Output(Worker(0, 1, torch.device("cpu"), ("here",)), 17, 12, {}, None, {"final": nothing}, {}, {}, of_artifact)
    module.write_revision(str(tmp_path), 0, output, {}, {})
    found = module.final_scores(str(tmp_path), 0, lambda: train)
    whole = module.read_revision(str(tmp_path), 0, None, lambda: train).vectors.histories
    everyone = torch.arange(17)
    for mine, theirs, again in zip(parts, found.histories, whole, strict=True):
        assert torch.equal(theirs.rows(everyone), mine.rows(everyone))
        assert torch.equal(again.rows(everyone), mine.rows(everyone))
    assert read_manifest(f"{tmp_path}/rev-0", "teacher-vectors")["histories"] == 2
    with pytest.raises(AssertionError, match="read with the train items"):
        module.read_revision(str(tmp_path), 0)


def test_a_revision_that_is_not_there_or_damaged_is_refused(written, tmp_path):
    url, _ = written
    with pytest.raises(InputError):
        module.read_revision(url, 1)
    shard = tmp_path / "rev-2" / "item-00001.safetensors"
    shard.write_bytes(shard.read_bytes()[:-4])
    with pytest.raises(InputError, match=r"item-00001\.safetensors"):
        module.read_revision(url, 2)
