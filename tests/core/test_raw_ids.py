"""Raw ids in files: a sequence of strings, and an exact lookup whatever the hashes are."""

import numpy as np
import pyarrow as pa
import pytest
from promptmm.core import raw_ids
from promptmm.core.raw_ids import RawIds, hash_ids, write_ids

IDS = [*(f"user-{n}" for n in range(400)), "7", "07", "", "é" * 9, "x" * 8, "x" * 16, "x" * 17, "\0", "\0\0", "a\nb"]
WORD = (1 << 64) - 1


@pytest.fixture(params=["in one piece", "in small pieces", "with collisions"])
def small(request, monkeypatch):
    """Sizes, and hashes, in which every way through the code is taken."""
    if request.param == "in small pieces":
        for name, size in (("IDS_A_PIECE", 7), ("IDS_A_SORT", 10), ("BIN_BITS", 3)):
            monkeypatch.setattr(raw_ids, name, size)
    if request.param == "with collisions":
        monkeypatch.setattr(raw_ids, "hash_ids", lambda ids: hash_ids(ids) >> 62)


@pytest.fixture(params=["file", "memory", "file and more"])
def ids(request, small, tmp_path) -> RawIds:
    if request.param == "memory":
        return RawIds.of(IDS)
    first = len(IDS) if request.param == "file" else 390
    write_ids(tmp_path / "ids", IDS[:first])
    return RawIds.open(tmp_path / "ids").followed_by(IDS[first:]) if first < len(IDS) else RawIds.open(tmp_path / "ids")


def splitmix(x: int) -> int:
    x = (x + 0x9E3779B97F4A7C15) & WORD
    x = ((x ^ (x >> 30)) * 0xBF58476D1CE4E5B9) & WORD
    x = ((x ^ (x >> 27)) * 0x94D049BB133111EB) & WORD
    return x ^ (x >> 31)


def test_the_hash_is_the_documented_one():
    def expected(raw: str) -> int:
        data = raw.encode()
        state = splitmix(len(data))
        for first in range(0, len(data), 8):
            state = splitmix(state ^ int.from_bytes(data[first : first + 8], "little"))
        return state - ((state >> 63) << 64)

    assert hash_ids(pa.array(IDS, pa.large_string())).tolist() == [expected(raw) for raw in IDS]
    assert len({expected(raw) for raw in IDS}) == len(IDS)


def test_every_id_is_found_and_no_other(ids):
    assert ids.find(IDS).tolist() == list(range(len(IDS)))
    backwards = pa.array(IDS[::-1])
    assert ids.find(backwards).tolist() == list(range(len(IDS)))[::-1]
    unknown = ["user-400", "x", "x" * 7, "x" * 9, "\0\0\0", "\ud800", "0"]
    assert ids.find(["7", *unknown, "7"]).tolist() == [400, *[-1] * len(unknown), 400]
    assert ids.find([]).tolist() == []


def test_it_is_a_sequence_of_strings(ids):
    assert len(ids) == len(IDS)
    assert list(ids) == IDS
    assert [ids[0], ids[-1], ids[395]] == [IDS[0], IDS[-1], IDS[395]]
    assert [ids[5:9], ids[::-100], ids[395:]] == [IDS[5:9], IDS[::-100], IDS[395:]]
    assert ids == IDS
    assert ids != IDS[:-1]
    assert ids != [*IDS[:-1], "another"]
    assert ids != "text"
    assert "07" in ids
    assert "007" not in ids
    assert 7 not in ids
    with pytest.raises(IndexError):
        ids[len(IDS)]


def test_ids_are_taken_in_any_order(ids):
    places = np.array([395, 0, 389, 390, 0])
    assert ids.take(places).to_pylist() == [IDS[place] for place in places]
    assert ids.take(places[:0]).to_pylist() == []


def test_a_file_does_not_depend_on_the_pieces_it_was_written_in(tmp_path, monkeypatch):
    write_ids(tmp_path / "whole", IDS)
    for name, size in (("IDS_A_PIECE", 7), ("IDS_A_SORT", 10), ("BIN_BITS", 3)):
        monkeypatch.setattr(raw_ids, name, size)
    write_ids(tmp_path / "pieces", lambda: [pa.array(IDS[:100]), pa.array(IDS[100:], pa.large_string())])
    assert (tmp_path / "pieces").read_bytes() == (tmp_path / "whole").read_bytes()


def test_no_ids(tmp_path):
    write_ids(tmp_path / "none", [])
    ids = RawIds.open(tmp_path / "none")
    assert (len(ids), list(ids), ids.find(["a"]).tolist()) == (0, [], [-1])
