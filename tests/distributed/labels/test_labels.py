"""Label blocks: contents, shards, revisions, and scores that do not fit."""

import dataclasses
import json

import pyarrow as pa
import pytest
import torch
from promptmm.core.artifact import sealed
from promptmm.core.config import DistillationConfig
from promptmm.core.errors import InputError
from promptmm.core.objectives import Labels
from promptmm.core.train_pairs import TrainPairs
from promptmm.distributed.artifacts.teacher import read_revision
from promptmm.distributed.labels.blocks import LabelBlock, block_name, labels_to_table
from promptmm.distributed.labels.labeler import Labeler
from promptmm.distributed.labels.rankings import open_rankings
from promptmm.distributed.labels.source import MaterialisedLabels, joined
from promptmm.distributed.messages import LabelJob
from promptmm.graph_store.dataset import open_dataset


@pytest.fixture(scope="module")
def dataset(taught_run):
    return open_dataset(str(taught_run / "dataset"))


@pytest.fixture(scope="module")
def job(taught_run, dataset):
    config = DistillationConfig(num_uniform=4, num_top=2)
    return LabelJob(
        str(taught_run / "dataset"), str(taught_run / "teacher"), 0, config, 256, 2, dataset.manifest["num_interactions"]["train"], 0
    )


@pytest.mark.parametrize("examples", ["interactions", "histories", "users"])
def test_block_holds_the_teachers_differences(job, dataset, examples):
    labeler, train = Labeler(dataclasses.replace(job, examples=examples), dataset), dataset.csr("train")
    labels, vectors = labeler.labels(1, 0), read_revision(job.teacher_url, 0).vectors
    _, users, positives = TrainPairs.of(train, job.seed, examples).at(1, slice(0, len(labels)))
    assert torch.equal(labels.users, users)
    assert torch.equal(labels.candidates[:, 0], positives)
    scores = (vectors.user[labels.users][:, None] * vectors.item[labels.candidates]).sum(2)
    assert torch.allclose(labels.scores, scores - scores[:, :1], atol=1e-5)
    modal = (vectors.modal_user["visual"][labels.users][:, None] * vectors.modal_item["visual"][labels.candidates]).sum(2)
    at = list(vectors.modal_item).index("visual")
    assert torch.allclose(labels.modal_scores[at], modal - modal[:, :1], atol=1e-5)
    seen = {(u, i) for u, i in zip(train.rows.tolist(), train.columns.tolist())}
    assert not any((u, c) in seen for u, row in zip(labels.users.tolist(), labels.candidates[:, 1:].tolist()) for c in row)


def test_shards_of_every_step_make_up_the_whole(job, dataset):
    whole, world = Labeler(job, dataset), 3
    parts = [Labeler(dataclasses.replace(job, rank=rank, world_size=world), dataset) for rank in range(world)]
    for block in range(job.num_blocks):
        expected = whole.labels(0, block)
        pieces, starts = [p.labels(0, block) for p in parts], [0] * world
        users = []
        for step in range(len(job.step_sizes(block))):
            for rank in range(world):
                size = parts[rank].job.step_sizes(block)[step]
                users.append(pieces[rank].users[starts[rank] : starts[rank] + size])
                starts[rank] += size
        assert torch.equal(torch.cat(users), expected.users)


@pytest.fixture(scope="module")
def ranked(job, dataset):
    return lambda: open_rankings(job.rankings, dataset).at


def test_materialised_labels_are_those_of_the_labeler(job, dataset, taught_run, ranked):
    labeler, steps = Labeler(job, dataset), []
    stored = MaterialisedLabels(str(taught_run), job, labeler.scores.modalities, ranked)
    for step, labels in stored.epoch(2):
        steps.append(step)
        start = step % job.steps_a_block * job.batch_size
        expected = labeler.labels(2, step // job.steps_a_block).slice(slice(start, start + len(labels)))
        assert torch.equal(labels.users, expected.users)
        assert torch.equal(labels.candidates, expected.candidates)
        assert torch.equal(labels.scores, expected.scores.half().float())
        assert torch.equal(labels.modal_scores, expected.modal_scores.half().float())
    assert steps == list(range(job.num_steps))


@pytest.mark.parametrize(("batch_size", "world_size"), [(100, 1), (333, 3), (2000, 2)])
def test_batches_of_any_size_and_any_number_of_workers_read_the_same_labels(job, taught_run, ranked, batch_size, world_size):
    def read(job, epoch=1):
        return [labels for _, labels in MaterialisedLabels(str(taught_run), job, ["visual"], ranked).epoch(epoch)]

    whole = joined(read(job))
    shares = [dataclasses.replace(job, batch_size=batch_size, rank=rank, world_size=world_size) for rank in range(world_size)]
    found = joined([part for step in zip(*map(read, shares)) for part in step])
    assert torch.equal(found.users, whole.users)
    assert torch.equal(found.candidates, whole.candidates)
    assert torch.equal(found.scores, whole.scores)
    assert torch.equal(found.modal_scores, whole.modal_scores)


def test_wrong_revision_is_refused(job, dataset):
    labeler = Labeler(job, dataset)
    with pytest.raises(InputError, match="revision 0 found, 1 expected"):
        LabelBlock(labeler.table(0, 0), labeler.scores.modalities, {"revision": 1, "epoch": 0, "block": 0})


def test_scores_beyond_float16_are_an_error():
    scores = torch.tensor([[0.0, 70_000.0]])
    labels = Labels(torch.tensor([0]), torch.tensor([[1, 2]]), scores, torch.zeros(1, 1, 2))
    with pytest.raises(InputError, match="label block 4 of epoch 0: scores reach 7e\\+04, float16 ends at 65504"):
        labels_to_table(labels, ["visual"], {"revision": 0, "epoch": 0, "block": 4}, 10, "float16")


@pytest.mark.parametrize("encoding", ["float16", "uint8"])
def test_a_block_says_what_it_was_made_of(job, dataset, ranked, encoding):
    """Items are those of the labeler wherever they come from, and scores are as close as the encoding allows."""
    labeler = Labeler(dataclasses.replace(job, scores=encoding), dataset)
    table, expected = labeler.table(0, 1), labeler.labels(0, 1)
    labels = LabelBlock(table, labeler.scores.modalities, {"revision": 0, "epoch": 0, "block": 1}, ranked())[0 : len(expected)]
    assert torch.equal(labels.candidates, expected.candidates)
    assert (table["drawn"].type.value_type, table["ranked"].type.value_type) == (pa.uint16(), pa.uint8())
    for found, scores in [(labels.scores, expected.scores), *zip(labels.modal_scores, expected.modal_scores)]:
        assert not found[:, 0].any()
        others = scores[:, 1:]
        steps = (others.amax(1) - others.amin(1)) / 255
        bound = (
            others.abs() * 2**-11 + 2**-25
            if encoding == "float16"
            else (0.5 * steps + steps * 2**-10 + others.abs().amax(1) * 2**-10)[:, None]
        )
        assert ((found - scores)[:, 1:].abs() <= bound).all()


@pytest.mark.parametrize(("num_items", "dtype"), [(1 << 16, pa.uint16()), ((1 << 16) + 1, pa.int32())])
def test_items_take_two_bytes_where_these_are_enough(num_items, dtype):
    last = num_items - 1
    labels = Labels(torch.tensor([3]), torch.tensor([[last, 0, last]]), torch.zeros(1, 3), torch.zeros(0, 1, 3))
    numbers = {"revision": 0, "epoch": 0, "block": 0}
    table = labels_to_table(labels, [], numbers, num_items, "uint8")
    assert table["positive"].type == table["drawn"].type.value_type == dtype
    assert LabelBlock(table, [], numbers)[0:1].candidates.tolist() == [[last, 0, last]]


def test_truncated_block_is_refused(job, fork_run, taught_run, ranked):
    folder = fork_run("damaged", taught_run)
    block = next((folder / "labels" / "rev-0").rglob("*.arrow"))
    block.write_bytes(block.read_bytes()[:-10])
    with pytest.raises(InputError, match="checksum does not match"):
        MaterialisedLabels(str(folder), job, ["visual"], ranked)


def test_labels_of_an_earlier_version_are_refused(job, fork_run, taught_run, ranked):
    folder = fork_run("earlier", taught_run)
    manifest = folder / "labels" / "rev-0" / "manifest.json"
    facts = json.loads(manifest.read_text())
    del facts["layout"]
    manifest.write_text(json.dumps(sealed(facts)))
    with pytest.raises(InputError, match=r"earlier version.*run\.redo=label"):
        MaterialisedLabels(str(folder), job, ["visual"], ranked)


def test_arrow_blocks_are_readable_by_anyone(taught_run):
    block = next((taught_run / "labels" / "rev-0").rglob("*.arrow"))
    with pa.memory_map(str(block)) as file:
        names = pa.ipc.open_file(file).read_all().schema.names
    assert names[:5] == ["user", "positive", "drawn", "ranked", "scores"]


def test_blocks_are_compressed_where_that_is_asked_for(job, dataset, tmp_path):
    sizes = {}
    for compression in ("none", "zstd"):
        labeler = Labeler(dataclasses.replace(job, compression=compression), dataset)
        labeler.write(str(tmp_path / compression), {"epoch": 0, "block": 0})
        path = tmp_path / compression / block_name(0, 0)
        sizes[compression] = path.stat().st_size
        with pa.memory_map(str(path)) as file:
            assert pa.ipc.open_file(file).read_all().equals(labeler.table(0, 0))
    assert sizes["zstd"] < sizes["none"]
