"""Credentials in URLs are neither saved nor shown."""

import io

import pytest
from promptmm.core.artifact import read_manifest, write_artifact
from promptmm.core.errors import InputError
from promptmm.core.redaction import RedactedStream, redacted, redacted_tree
from promptmm.core.storage import exists, read_json, write_json


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("ftp://u:p@host/x", "ftp://u:***@host/x"),
        ("sftp://u:p:w@host:22/x: no such file", "sftp://u:***@host:22/x: no such file"),
        ("http://:pw@host", "http://:***@host"),
        ("from s3://key:secret@bucket/a to s3://b/c", "from s3://key:***@bucket/a to s3://b/c"),
        ("https://h/p?X-Amz-Signature=12ab&X-Amz-Date=3&sig=x#f", "https://h/p?X-Amz-Signature=***&X-Amz-Date=3&sig=***#f"),
        ("{'path': 'ftp://u:p@h'}", "{'path': 'ftp://u:***@h'}"),
        ("s3://bucket/u:x@y token=3 key=4", "s3://bucket/u:x@y token=3 key=4"),
        ("https://host:8080/path?page=2", "https://host:8080/path?page=2"),
        ("user u@x:y", "user u@x:y"),
    ],
)
def test_secrets_of_urls_are_left_out_and_nothing_else(text, expected):
    assert redacted(text) == expected
    assert redacted(expected) == expected


def test_trees_are_redacted_to_their_leaves():
    tree = {"a": ["ftp://u:p@h", 1, None, ("ftp://u:p@h",)], "ftp://u:p@h": True}
    assert redacted_tree(tree) == {"a": ["ftp://u:***@h", 1, None, ["ftp://u:***@h"]], "ftp://u:***@h": True}


def test_files_and_manifests_have_no_passwords(tmp_path):
    write_json(str(tmp_path / "x.json"), {"url": "ftp://u:secret@h"})
    assert read_json(str(tmp_path / "x.json")) == {"url": "ftp://u:***@h"}
    with write_artifact(str(tmp_path / "a"), "thing", {"source": {"path": "ftp://u:secret@h"}}):
        pass
    assert read_manifest(str(tmp_path / "a"), "thing")["source"] == {"path": "ftp://u:***@h"}


def test_a_saved_url_without_its_password_is_refused_with_what_to_do():
    with pytest.raises(InputError, match=r"ftp://u:\*\*\*@h/x: passwords and tokens are not saved with a run.*give it once more"):
        exists("ftp://u:***@h/x")


def test_a_stream_is_redacted():
    stream = io.StringIO()
    print("at", "ftp://u:p@h", file=RedactedStream(stream), flush=True)
    assert stream.getvalue() == "at ftp://u:***@h\n"
