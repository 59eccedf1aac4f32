"""The serving bundle: raw ids in and out, exact lists, and nothing but the base install needed."""

import os
import re
import shutil
import subprocess
import sys
import textwrap
import uuid
import venv
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from promptmm.core import Recommender, item_parts, load_student, serving, tensor_file
from promptmm.core.artifact import sealed
from promptmm.core.errors import InputError
from promptmm.core.graph import Csr
from promptmm.core.serving import write_bundle
from promptmm.core.storage import read_json, write_json
from safetensors.torch import load_file

ROOT = Path(__file__).resolve().parents[2]
NUM_USERS, NUM_ITEMS, DIM = 7, 30, 4
USER_IDS = [f"user-{u}" for u in range(NUM_USERS)]
ITEM_IDS = [str(1000 + 7 * i) for i in range(NUM_ITEMS)]  # numbers: callers may pass them as such
TRAINING_ONLY = ("ray", "dgl", "deepspeed", "pydantic", "yaml", "scipy", "matplotlib", "tensorboardX", "psutil")


def fails(*parts):
    """Expects an InputError whose message has all the parts in this order."""
    return pytest.raises(InputError, match="(?s)" + ".*".join(re.escape(str(part)) for part in parts))


@pytest.fixture(scope="module")
def truth() -> dict:
    """Vectors of small integers (dot products are exact, and many tie) and train items; the last user has none."""
    generator = np.random.default_rng(0)
    seen = {u: sorted(generator.choice(NUM_ITEMS, 5, replace=False).tolist()) for u in range(NUM_USERS - 1)}
    return {
        "users": generator.integers(-2, 3, (NUM_USERS, DIM)).astype(np.float32),
        "items": generator.integers(-2, 3, (NUM_ITEMS, DIM)).astype(np.float32),
        "seen": {**seen, NUM_USERS - 1: []},
    }


def write(url: str, truth: dict) -> None:
    pairs = [(u, i) for u, items in truth["seen"].items() for i in items]
    users, items = (torch.tensor(side) for side in zip(*pairs))
    train = Csr.from_pairs(users, items, NUM_USERS, NUM_ITEMS)
    vectors = torch.from_numpy(truth["users"]), torch.from_numpy(truth["items"])
    weights = {"ids.user": vectors[0], "ids.item": vectors[1]}
    write_bundle(url, *vectors, USER_IDS, ITEM_IDS, train, weights, {"metrics": {"test": {"recall@20": 0.5}}, "seed": 3})


@pytest.fixture(scope="module")
def bundle(truth, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("bundle") / "student"
    write(str(folder), truth)
    return folder


@pytest.fixture(scope="module")
def student(bundle) -> Recommender:
    return load_student(str(bundle))


def ranked(scores: np.ndarray, k: int, excluded=(), allowed=None) -> list[tuple[str, float]]:
    """The k best items by brute force: ties go to the lower index."""
    candidates = range(NUM_ITEMS) if allowed is None else sorted(allowed)
    best = sorted((i for i in candidates if i not in set(excluded)), key=lambda i: (-scores[i], i))
    return [(ITEM_IDS[i], float(scores[i])) for i in best[:k]]


def pairs_of(found) -> list[tuple[str, float]]:
    return list(zip(found.items, found.scores))


@pytest.mark.parametrize("exclude_seen", [True, False])
@pytest.mark.parametrize("users", [None, ["user-6", "user-0", "user-6"]])
@pytest.mark.parametrize("items", [None, ITEM_IDS[3:20]])
def test_lists_in_batches_are_those_of_recommend(student, monkeypatch, users, items, exclude_seen):
    monkeypatch.setattr("promptmm.core.serving.USERS_A_BATCH", 2)
    k = NUM_ITEMS if items is None else len(items)
    batches = [*student.recommend_in_batches(users, k, exclude_seen, items)]
    assert [batch.num_rows for batch in batches] == ([2, 2, 2, 1] if users is None else [2, 1])
    found = [row for batch in batches for row in batch.to_pylist()]
    expected = student.recommend(USER_IDS if users is None else users, k, exclude_seen, items)
    assert [(row["user"], row["items"], row["scores"]) for row in found] == [(r.user, r.items, r.scores) for r in expected]


def test_what_batches_refuse_they_refuse_at_once(student):
    with fails("unknown user ids: nobody"):
        student.recommend_in_batches(["nobody"], 3)
    with fails(f"k={NUM_ITEMS + 1} is larger than the catalog of {NUM_ITEMS} items"):
        student.recommend_in_batches(None, NUM_ITEMS + 1)
    with fails("k=0: ask for at least one item"):
        student.recommend_in_batches(None, 0)


@pytest.mark.parametrize("exclude_seen", [True, False])
@pytest.mark.parametrize("k", [1, 10, 25, NUM_ITEMS])
def test_lists_agree_with_brute_force(student, truth, k, exclude_seen):
    lists = student.recommend(USER_IDS, k=k, exclude_seen=exclude_seen)
    assert [found.user for found in lists] == USER_IDS
    for user, found in enumerate(lists):
        excluded = truth["seen"][user] if exclude_seen else ()
        assert pairs_of(found) == ranked(truth["items"] @ truth["users"][user], k, excluded)


def test_users_in_any_order_and_more_than_once(student, truth):
    asked = [USER_IDS[4], USER_IDS[0], USER_IDS[4]]
    lists = student.recommend(asked, k=5)
    assert [found.user for found in lists] == asked
    assert lists[0] == lists[2]
    assert pairs_of(lists[1]) == ranked(truth["items"] @ truth["users"][0], 5, truth["seen"][0])
    assert student.recommend([], k=5) == []


@pytest.mark.parametrize("exclude_seen", [True, False])
def test_items_restrict_the_candidates(student, truth, exclude_seen):
    allowed = [21, 3, 9, 4, 28, 3, 14, 11]  # in any order, one of them twice
    lists = student.recommend(USER_IDS, k=3, exclude_seen=exclude_seen, items=[ITEM_IDS[i] for i in allowed])
    for user, found in enumerate(lists):
        excluded = truth["seen"][user] if exclude_seen else ()
        assert pairs_of(found) == ranked(truth["items"] @ truth["users"][user], 3, excluded, set(allowed))


def test_fewer_allowed_items_than_k_give_a_shorter_list(student, truth):
    whole = student.recommend([USER_IDS[0]], k=NUM_ITEMS)[0]
    assert len(whole.items) == len(whole.scores) == NUM_ITEMS - 5
    only_seen = [ITEM_IDS[i] for i in truth["seen"][0]]
    assert student.recommend([USER_IDS[0]], k=2, items=only_seen)[0].items == []
    one_new = next(i for i in range(NUM_ITEMS) if i not in truth["seen"][0])
    assert student.recommend([USER_IDS[0]], k=3, items=[*only_seen, ITEM_IDS[one_new]])[0].items == [ITEM_IDS[one_new]]


def test_ids_are_compared_as_strings(student):
    as_numbers = student.recommend([USER_IDS[1]], k=2, items=[int(raw) for raw in ITEM_IDS[:6]])
    assert as_numbers == student.recommend([USER_IDS[1]], k=2, items=ITEM_IDS[:6])


def test_unknown_ids_are_listed(student):
    with fails("user ids 'u1': expected a list of ids and got a single one; give ['u1']"):
        student.recommend("u1")
    with fails("item ids 'i1': expected a list of ids"):
        student.recommend_from_history("i1")
    with fails("unknown user ids: nobody, 12", "the student knows the 7 users"):
        student.recommend(["nobody", USER_IDS[0], 12], k=3)
    with fails("unknown item ids: 999", "the student knows the 30 items"):
        student.recommend([USER_IDS[0]], k=1, items=[ITEM_IDS[0], "999"])
    many = [f"ghost-{n}" for n in range(25)]
    with fails("ghost-0, ghost-1", "ghost-19 and 5 more;") as caught:
        student.recommend(many)
    assert "ghost-20" not in str(caught.value)


def test_k_out_of_range(student):
    with fails("k=31 is larger than the catalog of 30 items; ask for at most 30"):
        student.recommend([USER_IDS[0]], k=31)
    with fails("k=3 is larger than the 2 items named"):
        student.recommend([USER_IDS[0]], k=3, items=ITEM_IDS[:2])
    with fails("k=3 is larger than the 2 items named"):  # naming one twice does not make it two
        student.recommend([USER_IDS[0]], k=3, items=[ITEM_IDS[0], ITEM_IDS[0], ITEM_IDS[1]])
    for k in (0, -1):
        with fails(f"k={k}: ask for at least one item"):
            student.recommend([USER_IDS[0]], k=k)


@pytest.mark.parametrize("exclude_seen", [True, False])
def test_recommend_from_history(student, truth, exclude_seen):
    history = [2, 17, 5]
    vector = truth["items"][history].sum(0) / np.sqrt(len(history))
    found = student.recommend_from_history([ITEM_IDS[i] for i in [*history, 2]], k=6, exclude_seen=exclude_seen)
    expected = ranked(truth["items"] @ vector, 6, history if exclude_seen else ())
    assert found.user is None
    np.testing.assert_allclose(found.scores, [score for _, score in expected], rtol=1e-6, atol=1e-6)
    assert found.items == [raw for raw, _ in expected]


def test_recommend_from_history_within_items(student, truth):
    found = student.recommend_from_history([ITEM_IDS[2], ITEM_IDS[17]], k=2, items=ITEM_IDS[:3])
    vector = (truth["items"][2] + truth["items"][17]) / np.sqrt(2)
    assert found.items == [raw for raw, _ in ranked(truth["items"] @ vector, 2, [2, 17], range(3))]


def test_recommend_from_history_of_bad_input(student):
    with fails("recommend_from_history needs at least one item id"):
        student.recommend_from_history([])
    with fails("unknown item ids: nothing, 5"):
        student.recommend_from_history(["nothing", ITEM_IDS[0], 5])
    with fails("k=31 is larger than the catalog of 30 items"):
        student.recommend_from_history(ITEM_IDS[:1], k=31)


def test_what_a_loaded_student_tells(student, truth):
    assert student.user_ids == USER_IDS
    assert student.item_ids == ITEM_IDS
    assert student.num_seen().tolist() == [len(truth["seen"][u]) for u in range(NUM_USERS)]
    np.testing.assert_array_equal(student.users.numpy(), truth["users"])
    assert student.manifest["metrics"]["test"] == {"recall@20": 0.5}
    assert student.manifest["seed"] == 3
    assert repr(student) == "Recommender(7 users, 30 items, dim=4)"


@pytest.mark.parametrize("kind", ["file", "memory"])
def test_other_urls(truth, tmp_path, student, kind):
    url = f"file://{tmp_path}/student" if kind == "file" else f"memory://{uuid.uuid4().hex}/student"
    write(url, truth)
    loaded = load_student(url, cache_dir=str(tmp_path / "cache"))
    assert loaded.recommend(USER_IDS, k=9) == student.recommend(USER_IDS, k=9)


FILES = ("vectors.safetensors", "seen.safetensors", "weights.safetensors", "users.safetensors", "items.safetensors", "users.parquet")


@pytest.mark.parametrize("name", FILES)
def test_a_damaged_file_is_found(bundle, tmp_path, name):
    copy = tmp_path / "student"
    shutil.copytree(bundle, copy)
    damaged = bytearray((copy / name).read_bytes())
    damaged[len(damaged) // 2] ^= 1
    (copy / name).write_bytes(damaged)
    with fails(copy / name, "checksum does not match the manifest"):
        load_student(str(copy))
    (copy / name).unlink()
    with fails(copy / name, "missing, though the manifest lists it"):
        load_student(str(copy))


def test_a_bundle_of_an_earlier_version(bundle, tmp_path, student):
    """It has raw ids in Parquet files alone."""
    copy = tmp_path / "student"
    shutil.copytree(bundle, copy)
    manifest = read_json(str(copy / "manifest.json"))
    for name in ("users.safetensors", "items.safetensors"):
        (copy / name).unlink()
        del manifest["files"][name]
    write_json(str(copy / "manifest.json"), sealed(manifest))
    old = load_student(str(copy))
    assert (old.user_ids, old.item_ids) == (USER_IDS, ITEM_IDS)
    assert old.recommend(USER_IDS, k=9) == student.recommend(USER_IDS, k=9)
    with fails("unknown user ids: nobody"):
        old.recommend(["nobody"])


def test_raw_ids_can_be_read_as_tables(bundle):
    assert pq.read_table(bundle / "users.parquet")["id"].to_pylist() == USER_IDS
    assert pq.read_table(bundle / "items.parquet")["id"].to_pylist() == ITEM_IDS


def test_a_bundle_from_tensors_that_are_mapped_and_ids_in_chunks(bundle, truth, tmp_path):
    loaded = load_student(str(bundle))
    ids = [
        lambda all_ids=all_ids: (pa.array(all_ids[first : first + 3]) for first in range(0, len(all_ids), 3))
        for all_ids in (USER_IDS, ITEM_IDS)
    ]
    weights = load_file(str(bundle / "weights.safetensors"))
    metadata = {name: loaded.manifest[name] for name in ("metrics", "seed")}
    write_bundle(str(tmp_path / "again"), loaded.users, loaded.items, *ids, loaded._seen, weights, metadata)
    assert read_json(str(tmp_path / "again" / "manifest.json")) == loaded.manifest


def test_vectors_that_take_the_place_of_others(truth, tmp_path, student):
    changed = torch.tensor([3, 7]), torch.ones(2, DIM)
    write_bundle(str(tmp_path / "new"), student.users, student.items, USER_IDS, ITEM_IDS, student._seen, {}, {}, None, changed)
    expected = torch.from_numpy(truth["items"]).index_copy(0, *changed)
    assert torch.equal(load_student(str(tmp_path / "new")).items, expected)


def test_items_that_are_named_are_ranked_in_blocks(student, monkeypatch):
    asked = USER_IDS, 7, True, ITEM_IDS[::-2]
    whole = student.recommend(*asked)
    monkeypatch.setattr("promptmm.core.item_parts.GATHERED_BYTES", 4 * DIM * 4)
    sizes = []
    ranked = item_parts.top_k
    monkeypatch.setattr(
        item_parts, "top_k", lambda users, items, *more, **named: sizes.append(len(items)) or ranked(users, items, *more, **named)
    )
    assert student.recommend(*asked) == whole
    assert sizes == [4, 4, 4, 3]


def test_the_first_user_with_train_items(student, tmp_path):
    assert student.first_user() == "user-0"
    for pairs, first in (([], "a"), ([(1, 0)], "b"), ([(2, 0)], "c")):
        users, items = torch.tensor(pairs, dtype=torch.int64).view(-1, 2).T
        write_bundle(
            str(tmp_path / first), torch.ones(3, 1), torch.ones(2, 1), [*"abc"], [*"xy"], Csr.from_pairs(users, items, 3, 2), {}, {}
        )
        assert load_student(str(tmp_path / first)).first_user() == first


def test_ids_as_an_arrow_array(student):
    asked = pa.array(["user-3", "user-1"])
    assert student.recommend(asked, k=4, items=pa.array(ITEM_IDS[5:15])) == student.recommend(
        ["user-3", "user-1"], k=4, items=ITEM_IDS[5:15]
    )
    with fails("unknown user ids: nobody, 12;"):
        student.recommend(pa.array(["nobody", "user-1", "12"]))


def test_no_bundle(tmp_path):
    with fails(tmp_path / "student", "no complete student here"):
        load_student(str(tmp_path / "student"))


SERVE = """
    from promptmm.core import load_student
    student = load_student({url!r})
    for found in student.recommend({users!r}, k=5):
        print(*found.items)
    print(*student.recommend_from_history({history!r}, k=5).items)
"""


def serving_script(bundle: Path) -> str:
    return textwrap.dedent(SERVE).format(url=str(bundle), users=USER_IDS[:2], history=ITEM_IDS[:2])


def expected_output(student: Recommender) -> list[str]:
    lists = [*student.recommend(USER_IDS[:2], k=5), student.recommend_from_history(ITEM_IDS[:2], k=5)]
    return [" ".join(found.items) for found in lists]


def test_serving_imports_nothing_of_training(bundle, student):
    """As if what only training needs were not installed."""
    blocker = textwrap.dedent(f"""
        import sys
        class Absent:
            def find_spec(self, name, path=None, target=None):
                if name.split(".")[0] in {TRAINING_ONLY!r}:
                    raise ModuleNotFoundError(f"{{name}} is not here", name=name)
        sys.meta_path.insert(0, Absent())
    """)
    check = f"\nassert not set({TRAINING_ONLY!r}) & set(sys.modules)\n"
    script = blocker + serving_script(bundle) + check
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == expected_output(student)


@pytest.fixture(scope="module")
def base_install(tmp_path_factory) -> Path:
    """A virtual environment with the base install: no extra."""
    folder = tmp_path_factory.mktemp("base")
    source = folder / "source"  # a copy, since pip builds in the source tree
    packages = ("core", "graph_store", "distributed", "jobs", "cluster")
    for name in packages:
        shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "constraints.txt", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    venv.create(folder / "venv", with_pip=True)
    pip = [str(folder / "venv" / "bin" / "python"), "-m", "pip", "--disable-pip-version-check"]
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    install = [*pip, "install", "--quiet", "-c", str(source / "constraints.txt"), str(source)]
    done = subprocess.run(install, capture_output=True, text=True, timeout=900, env=environment)
    unreachable = ("Failed to establish a new connection", "Temporary failure in name resolution", "Network is unreachable")
    if done.returncode and any(sign in done.stderr for sign in unreachable):
        pytest.skip("the package index cannot be reached")
    assert done.returncode == 0, done.stderr
    yield folder / "venv" / "bin"
    shutil.rmtree(folder, ignore_errors=True)  # pytest would keep the gigabyte of torch


def run_in(folder: Path, *command: str) -> subprocess.CompletedProcess:
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    return subprocess.run([str(folder / command[0]), *command[1:]], capture_output=True, text=True, timeout=300, cwd="/", env=environment)


@pytest.mark.slow  # three minutes: pip installs torch
def test_the_base_install_serves(base_install, bundle, student):
    done = run_in(base_install, "python", "-c", serving_script(bundle))
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == expected_output(student)


@pytest.mark.slow
def test_the_base_install_has_no_training_packages(base_install):
    listed = run_in(base_install, "python", "-m", "pip", "list", "--format=freeze").stdout.splitlines()
    names = {line.partition("==")[0].lower() for line in listed}
    assert "promptmm" in names
    assert not names & {"ray", "dgl", "deepspeed"}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("words", "code", "said"),
    [(["pipeline", "demo"], 1, "pip install 'promptmm[local]'"), (["--help"], 0, "train-teacher"), ([], 2, "train-teacher")],
)
def test_the_command_of_a_base_install_lists_the_verbs_and_names_the_extra(base_install, words, code, said):
    done = run_in(base_install, "promptmm", *words)
    assert done.returncode == code
    assert said in (done.stderr if code == 1 else done.stdout)
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("side", ["user", "item"])
def test_vectors_that_are_not_finite_are_refused_at_export_and_at_load(tmp_path, value, side, monkeypatch):
    """Also in a large file, which is looked at when its checksum is computed, and not each time."""
    vectors = {"user": torch.ones(5, 3), "item": torch.ones(7, 3)}
    ids = [f"u{n}" for n in range(5)], [f"i{n}" for n in range(7)]
    train = Csr.from_pairs(torch.tensor([0]), torch.tensor([0]), 5, 7)
    url = str(tmp_path / "student")
    write_bundle(url, vectors["user"], vectors["item"], *ids, train, {}, {})
    load_student(url)
    vectors[side][4, 1] = value
    with pytest.raises(InputError, match=f"the student's {side} vectors: row 4 has a value that is infinite or NaN"):
        write_bundle(url, vectors["user"], vectors["item"], *ids, train, {}, {})
    load_student(url)  # the bundle that was there is there

    monkeypatch.setattr(tensor_file, "check_finite", lambda *given: None)
    monkeypatch.setattr(serving, "check_finite", lambda *given: None)
    write_bundle(url, vectors["user"], vectors["item"], *ids, train, {}, {})  # as somebody else's program may write one
    monkeypatch.undo()
    for verify in ("changed", "all", "sizes"):
        with pytest.raises(InputError, match=rf"vectors.safetensors: {side} vectors: row 4 has a value that is infinite or NaN"):
            load_student(url, verify=verify)
