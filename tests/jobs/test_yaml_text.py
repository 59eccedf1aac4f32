"""YAML of people: what is wrong with it is said in a short sentence, in no time and little memory."""

import pytest
from promptmm.core.errors import InputError
from promptmm.jobs.settings import load_settings, read_recipe
from promptmm.jobs.yaml_text import MAX_BYTES, read_yaml

BOMB = "a0: &a0 [x, x]\n" + "".join(f"a{n}: &a{n} [*a{n - 1}, *a{n - 1}]\n" for n in range(1, 60))
WRONG = {
    "aliases that multiply": (BOMB, "aliases (*name) stand for more than 100,000 values"),
    "an alias inside itself": ("a: &a [*a]", "nested more than 40 deep"),
    "deep lists": ("a: " + "[" * 100_000, "nested more than 40 deep"),
    "closed deep lists": ("a: " + "[" * 20_000 + "]" * 20_000, "nested more than 40 deep"),
    "deep mappings": ("a: " + "{a: " * 20_000 + "1" + "}" * 20_000, "nested more than 40 deep"),
    "deep json": ('{"a":' * 20_000, "nested more than 40 deep"),
    "a large file": ("x" * (MAX_BYTES + 1), "settings take less than 262,144; is it another file?"),
    "latin-1": ("teacher: {kind: caf\xe9}".encode("latin-1"), "not UTF-8 text (byte 19 is 0xe9); save it as UTF-8"),
    "utf-16": ("teacher: {dim: 8}".encode("utf-16"), "not UTF-8 text (byte 0 is 0xff)"),
    "binary": (bytes(range(1, 128)), "not valid YAML"),
    "a key twice": ("teacher: {dim: 8}\nteacher: {dim: 9}", "the key 'teacher' is there twice"),
    "a key twice inside": ("teacher: {dim: 8, l2: 1, dim: 9}", "the key 'dim' is there twice"),
    "no date": ("a: 2024-99-99", "not valid YAML (month must be in 1..12)"),
    "an object": ("a: !!python/object:os.system {}", "not valid YAML"),
    "a long line": ("a: [" + "b, " * 50_000, "not valid YAML"),
    "a tab": ("teacher:\n\tdim: 8", "not valid YAML"),
}


@pytest.mark.parametrize("name", WRONG)
def test_what_is_wrong_is_said(name, tmp_path):
    text, message = WRONG[name]
    path = tmp_path / "mine.yaml"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(InputError) as found:
        read_recipe(str(path))
    assert str(found.value).startswith(f"recipe {path}: ")
    assert message in str(found.value)
    assert len(str(found.value)) < 700


def test_what_is_right_is_read():
    assert read_yaml("\ufeffa: &x [1, 2]\nb: *x\nc: {<<: {d: 3}, d: 4}".encode(), "it") == {"a": [1, 2], "b": [1, 2], "c": {"d": 4}}
    assert read_yaml("", "it") is None
    assert read_yaml("1e-3", "it") == "1e-3"


def test_a_long_value_of_the_command_line_is_cut():
    for word in ("teacher.dim=[" + "1, " * 50_000, "teacher.dim=" + "x" * 100_000):
        with pytest.raises(InputError) as found:
            load_settings("demo", [word])
        assert len(str(found.value)) < 1000


def test_a_recipe_that_is_no_file_is_refused(tmp_path, monkeypatch):
    import os

    monkeypatch.chdir(tmp_path)
    (tmp_path / "demo").mkdir()
    (tmp_path / "folder").mkdir()
    os.mkfifo(tmp_path / "pipe")
    assert read_recipe("demo")  # the shipped one
    with pytest.raises(InputError, match="folder: a folder, not a file; name a file"):
        read_recipe("folder")
    with pytest.raises(InputError, match="pipe: a pipe, a socket or a device, which has no end"):
        read_recipe("pipe")
