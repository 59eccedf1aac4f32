"""Files of tensors that are written through a mapping: what safetensors itself would write, from tensors of any layout."""

import errno

import pytest
import torch
from promptmm.core.tensor_file import save_tensors, tensor_file
from safetensors.torch import load_file, save_file

TENSORS = {
    "pointers": torch.arange(7),
    "b": torch.randn(5, 3, generator=torch.Generator().manual_seed(0)),
    "a": torch.arange(15.0).view(3, 5).T,
    "columns": torch.arange(4, dtype=torch.int32),
    "text": torch.arange(3, dtype=torch.uint8),
    "one": torch.tensor(2.5, dtype=torch.float64),
    "nothing": torch.zeros(0, 4),
    "half": torch.arange(3.0).half(),
    "brain": torch.arange(3.0).bfloat16(),
    "é": torch.tensor([True]),
}


@pytest.mark.parametrize("piece_bytes", [1, 1 << 24])
def test_a_file_has_the_bytes_that_safetensors_writes(tmp_path, monkeypatch, piece_bytes):
    monkeypatch.setattr("promptmm.core.tensor_file.PIECE_BYTES", piece_bytes)
    save_tensors(tmp_path / "ours", TENSORS)
    save_file({name: tensor.contiguous() for name, tensor in TENSORS.items()}, str(tmp_path / "theirs"))
    assert (tmp_path / "ours").read_bytes() == (tmp_path / "theirs").read_bytes()


def test_a_file_without_tensors(tmp_path):
    save_tensors(tmp_path / "empty", {})
    assert load_file(str(tmp_path / "empty")) == {}


def test_what_is_not_filled_is_zero_and_the_rest_stays(tmp_path):
    with tensor_file(tmp_path / "file", {"x": ("float32", (4, 2)), "n": ("int64", (3,))}) as out:
        out["x"][1:3] = 1
        out["n"][2] = 7
    found = load_file(str(tmp_path / "file"))
    assert found["x"].tolist() == [[0, 0], [1, 1], [1, 1], [0, 0]]
    assert found["n"].tolist() == [0, 0, 7]


@pytest.mark.parametrize("code", [errno.EOPNOTSUPP, errno.ENOSPC])
def test_a_file_system_without_room_is_an_error_and_one_that_reserves_none_is_not(tmp_path, monkeypatch, code):
    def refuse(file, offset, size):
        raise OSError(code, "refused")

    monkeypatch.setattr("promptmm.core.tensor_file.os.posix_fallocate", refuse)
    if code == errno.ENOSPC:
        with pytest.raises(OSError, match="refused"):
            save_tensors(tmp_path / "file", TENSORS)
    else:
        save_tensors(tmp_path / "file", TENSORS)
        assert torch.equal(load_file(str(tmp_path / "file"))["b"], TENSORS["b"])
