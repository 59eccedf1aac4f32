"""Cold items through the command line: they are held out, ranked by the map that ships, and said in every record."""

import json
import shutil

import numpy as np
import pytest
import torch
from promptmm.core import load_student
from promptmm.core.artifact import read_manifest
from promptmm.core.ranking import evaluate
from promptmm.core.storage import read_bytes, read_json
from promptmm.graph_store.dataset import masks, open_dataset
from promptmm.jobs.runs.models import trained_student
from promptmm.jobs.runs.new_items import features_of

LOCAL = ("cluster.executor=local", "cluster.threads=1")
COLD = (*LOCAL, "source.cold_items=0.3", "source.synthetic_num_items=200", "source.synthetic_noise=0.3", "evaluation.cutoffs=[5, 20]")


@pytest.fixture(scope="module")
def run(tmp_path_factory, tiny):
    """`promptmm pipeline` with 60 of 200 items held out, and what it printed."""
    from promptmm.jobs.cli import main

    folder = str(tmp_path_factory.mktemp("cold") / "run")
    words = ["pipeline", str(tiny), *COLD, "teacher.modality_layers=0", "student.train.epochs=8", f"run.dir={folder}"]
    assert main(words) == 0
    return folder


def test_prepare_says_what_is_held_out(command, tiny, tmp_path):
    ended = command("prepare", tiny, *COLD, f"run.dir={tmp_path}/run")
    assert ended.code == 0, ended.err
    facts = read_manifest(f"{tmp_path}/run/dataset", "dataset")
    assert f"{facts['num_cold_items']} cold items are held out whole, with {facts['num_interactions']['cold']:,} interactions" in ended.out
    assert facts["source"]["cold_items"] == 0.3
    assert read_json(f"{tmp_path}/run/stages/prepare.json")["result"]["num_cold_items"] == facts["num_cold_items"]


def test_results_and_report_have_the_rows(run):
    results = read_json(f"{run}/results.json")
    cold, dataset = results["cold"], open_dataset(f"{run}/dataset")
    assert cold["num_items"] == dataset.manifest["num_cold_items"]
    rows = cold["rows"]
    assert {"map", "teacher", "content visual", "content visual, whitened", "content all modalities", "random"} <= set(rows)
    assert rows["random"]["recall@20"] == pytest.approx(20 / cold["num_items"])
    assert rows["map"]["recall@20"] > 1.2 * rows["random"]["recall@20"]
    report = read_bytes(f"{run}/report.md").decode()
    for name, metrics in rows.items():
        assert f"| {name} | {metrics['recall@5']:.4f} | {metrics['ndcg@5']:.4f} | {metrics['recall@20']:.4f} |" in report
    assert f"{cold['num_items']} items, {cold['num_users']} users" in report


def test_the_bundle_maps_new_items_as_they_were_measured(run):
    """Cold items under other ids get the vectors that were ranked: the same recall, by the lists of `recommend`."""
    student, dataset = load_student(f"{run}/student"), open_dataset(f"{run}/dataset")
    users, items = dataset.interactions("cold")
    cold, has_train = np.unique(items), dataset.csr("train").degrees.numpy() > 0
    features = {}
    for modality in dataset.modalities:
        rows, present = dataset.features(modality)
        features[modality] = np.where(present[:, None], rows, np.nan)[cold]
    ids = [f"new-{item}" for item in cold]
    known = student.with_new_items(ids, features)
    hits = []
    for user in np.unique(users[has_train[users]]):
        wanted = {f"new-{item}" for item in items[users == user]}
        found = known.recommend([student.user_ids[user]], k=20, items=ids)[0]
        hits.append(len(wanted & set(found.items)) / len(wanted))
    assert np.mean(hits) == pytest.approx(read_json(f"{run}/results.json")["cold"]["rows"]["map"]["recall@20"], abs=1e-6)
    everything = known.recommend(student.user_ids, k=len(known.item_ids))
    assert all(set(ids) <= set(found.items) for found in everything)


def test_untouched_items_of_the_bundle_have_the_vectors_of_the_map(run):
    """And evaluate ranked by these, while all other items and the student's own metrics stay as they are."""
    dataset, bundle, own = open_dataset(f"{run}/dataset"), load_student(f"{run}/student"), trained_student(run, None)
    untouched = torch.bincount(dataset.csr("train").columns, minlength=dataset.num_items) == 0
    features = {m: features_of(dataset, m, torch.arange(dataset.num_items)) for m in dataset.modalities}
    has_features = torch.stack([present for _, present in features.values()]).any(0)
    mapped = untouched & has_features
    assert torch.equal(bundle.items[~mapped], own.items[~mapped])
    assert torch.equal(bundle.items[mapped], bundle.item_map.vectors(features)[mapped])
    assert (bundle.manifest["num_untouched"], bundle.manifest["num_mapped"]) == (int(untouched.sum()), int(mapped.sum()))
    results = read_json(f"{run}/results.json")
    assert results["bundle"]["num_mapped"] == int(mapped.sum()) >= dataset.manifest["num_cold_items"]
    for name, items in (("student", own.items), ("bundle", bundle.items)):
        expected = evaluate(own.users, items, *masks(dataset, "test"), [5, 20])
        assert results[name]["test"] == pytest.approx(expected)
    assert bundle.manifest["metrics"]["test"] == results["bundle"]["test"] != results["student"]["test"]
    assert f"The bundle ranks {int(mapped.sum())} of the {int(untouched.sum())} items" in read_bytes(f"{run}/report.md").decode()


def test_the_bundle_can_keep_the_vectors_of_the_student(run, command, tiny, tmp_path):
    folder = shutil.copytree(run, tmp_path / "run")
    words = (tiny, *COLD, "export.map_untouched=false", f"run.dir={folder}")
    refused = command("export", *words, "run.redo=export")
    assert refused.code == 2
    assert "export.map_untouched=false: evaluate ranked with export.map_untouched=true" in refused.err
    assert command("evaluate", *words, "run.redo=evaluate").code == 0
    assert command("export", *words).code == 0
    bundle, results = load_student(str(folder / "student")), read_json(str(folder / "results.json"))
    assert torch.equal(bundle.items, trained_student(str(folder), None).items)
    assert bundle.manifest["num_mapped"] == 0
    assert "bundle" not in results
    before = read_json(f"{run}/results.json")
    assert results["student"] == before["student"]
    assert results["cold"] == before["cold"]
    assert bundle.manifest["metrics"]["test"] == results["student"]["test"]


def test_the_export_says_how_the_map_was_chosen(run):
    entry = read_manifest(f"{run}/student", "student")["new_items"]
    assert [m for m, _ in entry["modalities"]] == ["acoustic", "textual", "visual"] or len(entry["modalities"]) == 3
    assert len(entry["sets"]) == 7
    assert 0 < entry["recall"] <= 1
    assert json.dumps(entry)


def test_what_trains_never_sees_a_cold_pair(run):
    dataset = open_dataset(f"{run}/dataset")
    cold = set(dataset.interactions("cold")[1].tolist())
    assert cold
    assert not any(cold & set(dataset.interactions(split)[1].tolist()) for split in ("train", "validation", "test"))
    assert dataset.manifest["items_without_train"] >= len(cold)


@pytest.mark.parametrize(
    ("words", "parts"),
    [
        (("source.cold_items=1.5",), ("source.cold_items=1.5", "less than 1")),
        (("source.cold_items=much",), ("source.cold_items",)),
        (("source.cold_items=0.1", "source.modalities={}"), ("source.cold_items=0.1", "source.modalities")),
        (("source.cold_items=0.0001",), ("source.cold_items=0.0001", "hold out more")),
    ],
)
def test_what_is_refused(command, tiny, tmp_path, words, parts):
    ended = command("prepare", tiny, *LOCAL, *words, f"run.dir={tmp_path}/run")
    assert ended.code == 2
    assert all(part in ended.err for part in parts), ended.err
    assert "Traceback" not in ended.err


def test_other_cold_items_are_another_dataset(command, tiny, tmp_path):
    first = command("prepare", tiny, *COLD, f"run.dir={tmp_path}/run")
    changed = command("prepare", tiny, *COLD, "source.cold_items=0.2", f"run.dir={tmp_path}/run")
    assert (first.code, changed.code) == (0, 2)
    assert "source.cold_items=0.3 (now 0.2)" in changed.err


def test_a_catalog_without_features_has_no_map(command, tiny, tmp_path):
    words = (tiny, *LOCAL, "source.modalities={}", "distill.use_teacher=false", "student.train.epochs=1", f"run.dir={tmp_path}/run")
    assert command("pipeline", *words).code == 0
    assert "cold" not in read_json(f"{tmp_path}/run/results.json")
    assert load_student(f"{tmp_path}/run/student").item_map is None
