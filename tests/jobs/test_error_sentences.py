"""Errors of the system, of storage, of Ray and of DGL become a sentence, and their traceback goes to a file that it names."""

import errno
import os
import re
from pathlib import Path

import pytest
from promptmm.jobs import cli
from promptmm.jobs.error_sentences import keep_traceback, sentence_of


class DGLError(Exception):
    """As dgl has it."""


def raised_from(outer: Exception, inner: Exception) -> Exception:
    outer.__cause__ = inner
    return outer


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "/x/y"), "/x/y: there is no room left on its disk; free some"),
        (OSError(errno.EROFS, os.strerror(errno.EROFS), "/x/y"), "/x/y: its disk can only be read; name a place that can be written to"),
        (PermissionError(errno.EACCES, os.strerror(errno.EACCES), "/x/y"), "/x/y: this user may not do that; change the rights"),
        (raised_from(RuntimeError("a stage failed"), OSError(errno.ENOSPC, "No space", "/z")), "/z: there is no room left on its disk"),
        (DGLError("[00:00] serialize.cc:1: FileStream.Write incomplete"), "there is no room left on its disk"),
        (DGLError("Check failed: a == b"), "DGL failed: Check failed: a == b. The same command"),
        (ConnectionRefusedError(errno.ECONNREFUSED, "refused"), "nothing answers at this address"),
        (TimeoutError(), "no answer came (TimeoutError); check addresses and the network"),
        (MemoryError("Unable to allocate 3 TiB"), "not enough memory (Unable to allocate 3 TiB); see `promptmm plan`"),
        (KeyError("x"), "an error that promptmm does not know, or one of a module of your own: KeyError: 'x' (nowhere)"),
        (ModuleNotFoundError("No module named 'own'"), "install what your module imports"),
        (ValueError("long " * 1000), " ... "),
    ],
)
def test_an_error_is_a_sentence(error, said):
    sentence = sentence_of(error)
    assert said in sentence
    assert len(sentence) < 700
    assert "\n" not in sentence


def test_errors_of_storage_and_of_ray():
    botocore = pytest.importorskip("botocore.exceptions")
    ray = pytest.importorskip("ray")
    answered = botocore.ClientError({"Error": {"Code": "500", "Message": "Internal"}}, "PutObject")
    assert sentence_of(answered).startswith("the storage answered: An error occurred (500) when calling the PutObject operation: Internal")
    assert sentence_of(ray.exceptions.ActorUnavailableError("gone", None)).startswith("Ray failed: ")
    full = ray.exceptions.RayTaskError("f", "traceback", OSError(errno.ENOSPC, "No space left on device", "/z"))
    assert "there is no room left on its disk" in sentence_of(full)


def test_a_traceback_is_kept_without_passwords(tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    try:
        raise ValueError("at ftp://u:secret@host")
    except ValueError as error:
        kept = keep_traceback(error)
    text = Path(re.fullmatch(r" \(traceback: (.*)\)", kept)[1]).read_text()
    assert "Traceback (most recent call last)" in text
    assert "ftp://u:***@host" in text


def test_the_command_line_prints_the_sentence_alone(monkeypatch, capsys, tmp_path):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))

    def fail(*words: str) -> None:
        raise OSError(errno.ENOSPC, "No space left on device", "/data/x")

    monkeypatch.setattr(cli, "_run", fail)
    assert cli.main(["pipeline"]) == 1
    printed = capsys.readouterr().err
    assert printed.startswith("promptmm: /data/x: there is no room left on its disk; ")
    assert re.search(r"\(traceback: .*promptmm-traceback-.*\.txt\)\n$", printed)
    assert printed.count("\n") == 1
