"""Files of tensors that are written through a mapping: what safetensors itself would write, from tensors of any layout."""

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
