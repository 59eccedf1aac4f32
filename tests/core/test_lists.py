"""Lists of many users in a folder: the rows of one file, made in parts that are not made twice."""

import re
import signal
import subprocess
import sys
import textwrap
import time
import uuid
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from promptmm.core import lists as lists_module
from promptmm.core import load_student, write_lists
from promptmm.core.errors import InputError
from promptmm.core.graph import Csr
from promptmm.core.lists import PartWriter, begin_lists, lists_at, make_parts, parts_left
from promptmm.core.serving import write_bundle
from promptmm.core.storage import exists, join, read_bytes, read_json, remove

NUM_USERS, NUM_ITEMS = 45, 60
USERS = [f"u{n}" for n in range(NUM_USERS)]
SOME = [f"u{n}" for n in (40, 3, 3, 17, 0, 44, 21, 8, 30, 5, 12, 33)]


def fails(*parts):
    """Expects an InputError whose message has all the parts in this order."""
    return pytest.raises(InputError, match="(?s)" + ".*".join(re.escape(str(part)) for part in parts))


def write(url: str, num_users: int = NUM_USERS, num_items: int = NUM_ITEMS, seed: int = 0) -> None:
    generator = torch.Generator().manual_seed(seed)
    users, items = (torch.randn(count, 8, generator=generator) for count in (num_users, num_items))
    seen = torch.randint(num_items, (num_users, 4), generator=generator)
    train = Csr.from_pairs(torch.arange(num_users).repeat_interleave(4), seen.flatten(), num_users, num_items)
    write_bundle(url, users, items, [f"u{n}" for n in range(num_users)], [f"i{n}" for n in range(num_items)], train, {}, {})


@pytest.fixture(scope="module")
def bundle(tmp_path_factory) -> str:
    url = str(tmp_path_factory.mktemp("lists") / "student")
    write(url)
    return url


@pytest.fixture(params=["local", "memory"])
def url(request, tmp_path) -> str:
    return str(tmp_path / "lists") if request.param == "local" else f"memory://{uuid.uuid4().hex}/lists"


@pytest.fixture(autouse=True)
def small_parts(monkeypatch):
    """Batches of 4 users, parts of 8 of them."""
    monkeypatch.setattr("promptmm.core.serving.USERS_A_BATCH", 4)
    monkeypatch.setattr(lists_module, "USERS_A_PART", 8)


def rows_of(url: str) -> list[dict]:
    """The lists in all parts, in order."""
    parts = sorted(read_json(join(url, "_lists.json"))["parts"])
    return [row for name in parts for row in pq.read_table(pa.BufferReader(read_bytes(join(url, name)))).to_pylist()]


def expected(bundle: str, users: list[str] | None, k: int = 5, exclude_seen: bool = True) -> list[dict]:
    batches = load_student(bundle).recommend_in_batches(users, k, exclude_seen)
    return [row for batch in batches for row in batch.to_pylist()]


@pytest.mark.parametrize("exclude_seen", [True, False])
@pytest.mark.parametrize("users", [None, SOME])
def test_parts_have_the_rows_of_one_file(bundle, url, users, exclude_seen):
    assert write_lists(bundle, url, users, 5, exclude_seen) == len(users or USERS)
    assert rows_of(url) == expected(bundle, users, 5, exclude_seen)
    assert sorted(read_json(join(url, "_lists.json"))["parts"]) == [f"part-{n:05d}.parquet" for n in range(2 if users else 6)]
    assert not exists(join(url, "_progress"))


def test_readers_of_parquet_folders_take_the_lists_alone(bundle, tmp_path):
    write_lists(bundle, str(tmp_path / "lists"), None, 5)
    assert pq.read_table(tmp_path / "lists").num_rows == NUM_USERS
    assert pq.ParquetFile(tmp_path / "lists" / "part-00000.parquet").num_row_groups == 2


def begun(bundle: str, url: str, users: list[str] | None = None, k: int = 5):
    student = load_student(bundle)
    job = begin_lists(bundle, student, url, None if users is None else student.rows_of(users), k, True, None, False)
    return job, student


@pytest.mark.parametrize("users", [None, SOME])
def test_finished_parts_are_not_made_again(bundle, url, users):
    job, student = begun(bundle, url, users)
    PartWriter(job, student).write(1)
    assert parts_left(job) == [number for number in range(job.num_parts) if number != 1]
    made = [*make_parts(begun(bundle, url, users)[0], student)]
    assert sum(made) == len(users or USERS) - job.users_of(1)
    assert rows_of(url) == expected(bundle, users)


@pytest.mark.parametrize("lost", ["part-00001.parquet", "_progress/part-00001.json"])
def test_a_part_that_was_not_finished_is_made(bundle, url, lost):
    job, student = begun(bundle, url)
    PartWriter(job, student).write(1)
    remove(join(url, lost))
    assert parts_left(job) == [0, 1, 2, 3, 4, 5]


def test_complete_lists_are_not_made_again(bundle, url):
    assert write_lists(bundle, url, None, 5) == NUM_USERS
    assert write_lists(bundle, url, None, 5) == 0
    remove(join(url, "part-00003.parquet"))
    with fails("part-00003.parquet: missing or of another size, though _lists.json lists it", "run.redo=recommend"):
        write_lists(bundle, url, None, 5)
    assert write_lists(bundle, url, None, 5, anew=True) == NUM_USERS
    assert rows_of(url) == expected(bundle, None)


@pytest.mark.parametrize("is_complete", [True, False])
def test_lists_of_something_else_are_refused_and_made_anew_where_asked(bundle, url, tmp_path, is_complete):
    other = str(tmp_path / "other")
    write(other, seed=1)
    job, student = begun(bundle, url, SOME)
    if is_complete:
        assert sum(make_parts(job, student)) == len(SOME)
    else:
        PartWriter(job, student).write(0)
    for arguments, said in (
        ((bundle, url, SOME, 6), "begun here with k=5 (now 6); name another folder, or make them anew"),
        ((bundle, url, SOME, 5, False), "exclude_seen=True (now False)"),
        ((bundle, url, None, 5), "with other users;"),
        ((bundle, url, SOME[::-1], 5), "with other users;"),
        ((other, url, SOME, 5), "with another bundle;"),
    ):
        with fails(url, said):
            write_lists(*arguments)
    assert write_lists(bundle, url, None, 6, anew=True) == NUM_USERS
    assert rows_of(url) == expected(bundle, None, 6)
    assert not exists(join(url, "_progress"))


def test_a_folder_with_other_files_is_left_alone(bundle, tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    for anew in (True, False):
        with fails(tmp_path, "a folder is there with other files (notes.txt)"):
            write_lists(bundle, str(tmp_path), None, 5, anew=anew)
    with fails("notes.txt: a file is there, and lists go into a folder"):
        write_lists(bundle, str(tmp_path / "notes.txt"), None, 5)
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]


def test_bad_input_leaves_no_folder(bundle, url):
    with fails("unknown user ids: nobody"):
        write_lists(bundle, url, ["nobody"], 5)
    with fails(f"k={NUM_ITEMS + 1} is larger than the catalog"):
        write_lists(bundle, url, None, NUM_ITEMS + 1)
    assert lists_at(url) is None
    assert not exists(url)


def test_a_process_that_was_killed_as_it_began(bundle, url):
    begun(bundle, url, SOME)
    remove(join(url, "_progress/begun.json"))
    assert write_lists(bundle, url, SOME, 5) == len(SOME)


MAKE = """
    import sys
    from promptmm.core import lists, serving
    serving.USERS_A_BATCH, lists.USERS_A_PART = 4, 8
    lists.write_lists(sys.argv[1], sys.argv[2], None, 5)
"""


def test_lists_of_a_killed_process_are_completed(tmp_path):
    """SIGKILL in the middle: the finished parts stay as they are, and the lists are those of a process that nobody disturbed."""
    bundle, url = str(tmp_path / "student"), tmp_path / "lists"
    write(bundle, num_users=8 * 60)
    with subprocess.Popen([sys.executable, "-c", textwrap.dedent(MAKE), bundle, str(url)]) as process:
        deadline = time.monotonic() + 60
        while len(list((url / "_progress").glob("part-*.json"))) < 3 and time.monotonic() < deadline:
            time.sleep(0.01)
        process.kill()
    assert process.returncode == -signal.SIGKILL
    finished = {path.stem: path for path in (url / "_progress").glob("part-*.json")}
    assert 3 <= len(finished) < 60
    times = {name: (url / f"{name}.parquet").stat().st_mtime_ns for name in finished}
    assert write_lists(bundle, str(url), None, 5) == 8 * (60 - len(finished))
    assert {name: (url / f"{name}.parquet").stat().st_mtime_ns for name in finished} == times
    undisturbed = tmp_path / "undisturbed"
    write_lists(bundle, str(undisturbed), None, 5)
    assert contents(url) == contents(undisturbed)


def contents(folder: Path) -> dict[str, bytes]:
    """Bytes of all files by name, but for the hidden ones of a killed process."""
    return {path.name: path.read_bytes() for path in folder.iterdir() if not path.name.startswith(".")}
