"""`with_new_items` on a loaded bundle: new items rank beside the others, whose scores stay as they are."""

import uuid

import numpy as np
import pytest
import torch
from promptmm.core.artifact import read_manifest
from promptmm.core.errors import InputError
from promptmm.core.storage import exists, join

from .conftest import DIM, DIMS, NUM_ITEMS, NUM_USERS

USERS = [f"u{u}" for u in range(NUM_USERS)]
NEW = ["n0", "n1", 7]


@pytest.fixture
def features(world) -> dict[str, np.ndarray]:
    return {m: rows[:3].numpy() for m, (rows, present) in world.features.items()}


@pytest.fixture
def student(write_student, item_map, tmp_path):
    return write_student(str(tmp_path / "student"), item_map)


@pytest.mark.parametrize("where", ["folder", "memory"])
def test_a_bundle_keeps_the_map(write_student, item_map, world, tmp_path, where):
    url = str(tmp_path / "student") if where == "folder" else f"memory://{uuid.uuid4().hex}/student"
    found = write_student(url, item_map).item_map
    assert exists(join(url, "new_items.safetensors"))
    assert found.facts == item_map.facts
    assert torch.equal(found.vectors(world.features), item_map.vectors(world.features))
    assert read_manifest(url, "student")["new_items"]["modalities"] == [[m, dim] for m, dim in DIMS.items()]


def test_a_bundle_without_a_map_serves_and_says_what_to_do(write_student, features, tmp_path):
    student = write_student(str(tmp_path / "student"), None)
    assert not exists(join(str(tmp_path), "student", "new_items.safetensors"))
    assert len(student.recommend(["u1"], k=5)[0].items) == 5
    with pytest.raises(InputError, match=r"no map of new items.*run\.redo=export"):
        student.with_new_items(NEW, features)


def test_new_items_are_ranked_by_their_vectors(student, item_map, features):
    known = student.with_new_items(NEW, features)
    assert known.item_ids[NUM_ITEMS:] == ["n0", "n1", "7"]
    assert known.items.shape == (NUM_ITEMS + 3, DIM)
    every = known.recommend(USERS, k=NUM_ITEMS + 3, exclude_seen=False)
    scores = student.users @ known.items.T
    for user, found in enumerate(every):
        place = {raw: at for at, raw in enumerate(known.item_ids)}
        assert found.scores == sorted(found.scores, reverse=True)
        np.testing.assert_allclose(found.scores, scores[user, [place[raw] for raw in found.items]], rtol=1e-4, atol=1e-5)
        assert sorted(found.items) == sorted(known.item_ids)
    only = known.recommend(["u3"], k=3, items=["7", "n0", "i5"], exclude_seen=False)[0]
    assert set(only.items) == {"7", "n0", "i5"}
    history = known.recommend_from_history(["n1", "i5"], k=NUM_ITEMS + 1)
    assert not {"n1", "i5"} & set(history.items)
    assert "7" in history.items


@pytest.mark.parametrize("exclude_seen", [True, False])
@pytest.mark.parametrize("users", [USERS, USERS[:1]])
def test_scores_of_the_others_are_the_same_to_the_last_bit(student, features, users, exclude_seen):
    before = [dict(zip(found.items, found.scores)) for found in student.recommend(users, k=NUM_ITEMS, exclude_seen=exclude_seen)]
    known = student.with_new_items(NEW, features).with_new_items(["later"], {m: rows[:1] for m, rows in features.items()})
    after = known.recommend(users, k=NUM_ITEMS + 4, exclude_seen=exclude_seen)
    for old, found in zip(before, after):
        assert {raw: score for raw, score in zip(found.items, found.scores) if raw in old} == old
        assert [raw for raw in found.items if raw in old] == list(old)  # and in the same order
        assert len(found.items) == len(old) + 4
    some = [f"i{i}" for i in range(0, NUM_ITEMS, 7)]
    restricted = known.recommend(users, k=5, items=[*some, "later"], exclude_seen=exclude_seen)
    for old, found in zip(student.recommend(users, k=len(some), items=some, exclude_seen=exclude_seen), restricted):
        scores = dict(zip(old.items, old.scores))
        assert all(scores[raw] == score for raw, score in zip(found.items, found.scores) if raw != "later")


def test_the_recommender_itself_stays_as_it_is(student, features):
    lists, items = student.recommend(USERS, k=10), student.items.clone()
    student.with_new_items(NEW, features)
    assert student.recommend(USERS, k=10) == lists
    assert torch.equal(student.items, items)
    assert len(student.item_ids) == NUM_ITEMS
    with pytest.raises(InputError, match="unknown item ids: n0"):
        student.recommend(["u1"], k=1, items=["n0"])


@pytest.mark.parametrize("kind", ["list", "torch", "float32", "float16"])
def test_features_of_any_kind_of_array(student, features, kind):
    convert = {
        "list": lambda rows: rows.tolist(),
        "torch": torch.from_numpy,
        "float32": lambda rows: rows.astype(np.float32),
        "float16": lambda rows: rows.astype(np.float16),
    }[kind]
    found = student.with_new_items(NEW, {m: convert(rows) for m, rows in features.items()}).items[NUM_ITEMS:]
    expected = student.with_new_items(NEW, features).items[NUM_ITEMS:]
    torch.testing.assert_close(found, expected, rtol=0.05 if kind == "float16" else 1e-4, atol=0.05 if kind == "float16" else 1e-5)


def test_a_row_of_nan_and_a_modality_that_is_left_out_are_missing(student, features):
    blank = {**features, "text": np.full_like(features["text"], np.nan)}
    left_out = student.with_new_items(NEW, {"visual": features["visual"]})
    assert torch.equal(student.with_new_items(NEW, blank).items, left_out.items)


def changed(features, modality, row, column, value):
    rows = features[modality].copy()
    rows[row, column] = value
    return {**features, modality: rows}


@pytest.mark.parametrize(
    ("ids", "change", "message"),
    [
        (["i3", "n1", "n2"], lambda f: f, r"item ids i3: the student knows them already"),
        (["n1", "n2", "n1"], lambda f: f, r"item ids n1: .*twice"),
        ([], lambda f: f, "at least one item id"),
        (NEW, lambda f: {}, r"needs features; give at least one of visual, text"),
        (NEW, lambda f: {**f, "sound": f["text"]}, r"modality 'sound': .*reads visual, text"),
        (NEW, lambda f: {**f, "text": f["text"][:2]}, r"modality 'text': features of shape \[2, 5\], expected \[3, 5\]"),
        (NEW, lambda f: {**f, "text": f["visual"]}, r"modality 'text': features of shape \[3, 9\], expected \[3, 5\]"),
        (NEW, lambda f: {**f, "text": f["text"][0]}, r"modality 'text': features of shape \[5\]"),
        (NEW, lambda f: {**f, "text": [["x"] * 5] * 3}, r"modality 'text': .*no array of numbers"),
        (NEW, lambda f: changed(f, "text", 1, 2, np.nan), r"modality 'text': the row of item 'n1' has NaN beside numbers"),
        (NEW, lambda f: changed(f, "visual", 2, 0, np.inf), r"modality 'visual': the row of item '7' has an infinite value"),
        (NEW, lambda f: {m: np.where([[1], [0], [1]], rows, np.nan) for m, rows in f.items()}, r"items 'n1': no modality has a row"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_named(student, features, ids, change, message):
    with pytest.raises(InputError, match=message):
        student.with_new_items(ids, change(features))
