"""Label blocks: contents, shards, revisions, and scores that do not fit."""

import dataclasses

import pyarrow as pa
import pytest
import torch
from promptmm.core.config import DistillationConfig
from promptmm.core.errors import InputError
from promptmm.core.objectives import Labels
from promptmm.core.train_pairs import TrainPairs
from promptmm.distributed.artifacts.teacher import read_revision
from promptmm.distributed.labels.blocks import labels_to_table, table_to_labels
from promptmm.distributed.labels.labeler import Labeler
from promptmm.distributed.labels.source import MaterialisedLabels
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


def test_materialised_labels_are_those_of_the_labeler(job, dataset, taught_run):
    labeler, steps = Labeler(job, dataset), []
    stored = MaterialisedLabels(str(taught_run), job, labeler.scores.modalities)
    for step, labels in stored.epoch(2):
        steps.append(step)
        start = step % job.steps_a_block * job.batch_size
        expected = labeler.labels(2, step // job.steps_a_block).slice(slice(start, start + len(labels)))
        assert torch.equal(labels.candidates.long(), expected.candidates)
        assert torch.equal(labels.scores, expected.scores.half())
    assert steps == list(range(job.num_steps))


def test_wrong_revision_is_refused(job, dataset):
    labeler = Labeler(job, dataset)
    table = labeler.table(0, 0)
    with pytest.raises(InputError, match="revision 0 found, 1 expected"):
        table_to_labels(table, labeler.scores.modalities, 1, 0, 0)


def test_scores_beyond_float16_are_an_error():
    scores = torch.tensor([[0.0, 70_000.0]])
    labels = Labels(torch.tensor([0]), torch.tensor([[1, 2]]), scores, torch.zeros(1, 1, 2))
    with pytest.raises(InputError, match="scores reach 7e\\+04, float16 ends at 65504"):
        labels_to_table(labels, ["visual"], 0, 0, 0)


def test_truncated_block_is_refused(job, fork_run, taught_run):
    folder = fork_run("damaged", taught_run)
    block = next((folder / "labels" / "rev-0").rglob("*.arrow"))
    block.write_bytes(block.read_bytes()[:-10])
    with pytest.raises(InputError, match="checksum does not match"):
        MaterialisedLabels(str(folder), job, ["visual"])


def test_arrow_blocks_are_readable_by_anyone(taught_run):
    block = next((taught_run / "labels" / "rev-0").rglob("*.arrow"))
    with pa.memory_map(str(block)) as file:
        names = pa.ipc.open_file(file).read_all().schema.names
    assert names[:3] == ["user", "candidates", "scores"]
