"""The teacher learns more than a random ranking knows."""

import json

import pytest
import torch
from promptmm.core.ranking import evaluate
from promptmm.graph_store.dataset import masks, open_dataset
from promptmm.jobs.verbs import run_verb

ENGINES = {"full": ["cluster.engine=full"], "sampled": ["cluster.engine=sampled", "sampling.fan_outs=[8, 4]"]}


@pytest.mark.parametrize("engine", ENGINES)
def test_teacher_learns(fork_run, tiny_settings, engine):
    """Validation recall@20 after some epochs is well above the mean of ten random rankings, train items masked for both."""
    folder = fork_run("learns")
    more = ["teacher.train.epochs=8", "teacher.train.batch_size=64", "cluster.executor=local"]
    run_verb("train-teacher", tiny_settings(folder, *ENGINES[engine], *more))
    rows = [json.loads(line) for line in (folder / "training" / "teacher" / "metrics.jsonl").read_text().splitlines()]
    assert rows[-1]["loss"] < rows[0]["loss"]
    dataset = open_dataset(str(folder / "dataset"))
    held_out, seen = masks(dataset, "validation")
    found = []
    for seed in range(10):
        generator = torch.Generator().manual_seed(seed)
        vectors = [torch.randn(count, 8, generator=generator) for count in (dataset.num_users, dataset.num_items)]
        found.append(evaluate(*vectors, held_out, seen, [20])["recall@20"])
    by_chance = sum(found) / len(found)
    assert by_chance == pytest.approx(20 / dataset.num_items, abs=0.1)
    assert max(row["validation/recall@20"] for row in rows) > 1.5 * by_chance
    assert rows[-1]["validation/recall@20"] > max(found)
