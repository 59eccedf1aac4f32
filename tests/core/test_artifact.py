"""Artifacts: complete or absent, verified when read, on a local disk and on an object store."""

import os
import re
import shutil
import uuid
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from promptmm.core import artifact
from promptmm.core.artifact import (
    SCHEMA_VERSION,
    describe_files,
    has_artifact,
    manifest_digest,
    open_artifact,
    publish_manifest,
    read_manifest,
    sealed,
    sha256_of,
    write_artifact,
)
from promptmm.core.errors import InputError
from promptmm.core.storage import exists, is_local, join, local_path, read_json, remove, write_bytes, write_json
from promptmm.core.tensor_file import save_tensors

KIND = "thing"
FILES = {"a.bin": b"\x00\x01" * 700, "parts/0/b.txt": b"hello", "empty": b""}


@pytest.fixture(params=["local", "file", "memory"])
def url(request, tmp_path) -> str:
    """Where an artifact goes, on every kind of file system."""
    base = {"local": str(tmp_path), "file": f"file://{tmp_path}", "memory": f"memory://{uuid.uuid4().hex}"}[request.param]
    return f"{base}/run/artifact"


@pytest.fixture
def open_it(tmp_path) -> Callable:
    """Opens an artifact through a cache of its own."""
    return lambda url: open_artifact(url, KIND, cache_dir=str(tmp_path / f"cache-{uuid.uuid4().hex}"))


def write(url, files=FILES, kind=KIND, **metadata):
    with write_artifact(url, kind, metadata) as folder:
        for name, data in files.items():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_bytes(data)


def fails(*parts):
    """Expects an InputError whose message has all the parts in this order."""
    return pytest.raises(InputError, match="(?s)" + ".*".join(re.escape(str(part)) for part in parts))


def test_round_trip(url, open_it):
    assert not has_artifact(url)
    write(url, revision=3)
    assert has_artifact(url)
    folder, manifest = open_it(url)
    assert {name: (folder / name).read_bytes() for name in manifest["files"]} == FILES
    assert (manifest["kind"], manifest["revision"], manifest["schema_version"]) == (KIND, 3, SCHEMA_VERSION)
    assert manifest == read_manifest(url, KIND)
    assert manifest["files"]["parts/0/b.txt"] == {
        "bytes": 5,
        "sha256": "2cf24dba5fb0a30e26e83b2ac5b9e29e1b161e5c1fa7425e73043362938b9824",
    }


def test_metadata_may_be_filled_inside(url):
    metadata: dict = {}
    with write_artifact(url, KIND, metadata):
        metadata["count"] = 7
    assert read_manifest(url, KIND)["count"] == 7


def test_a_new_artifact_replaces_the_whole_old_one(url, open_it):
    write(url)
    first = manifest_digest(read_manifest(url, KIND))
    write(url, {"only.txt": b"new"})
    folder, manifest = open_it(url)
    assert list(manifest["files"]) == ["only.txt"]
    assert (folder / "only.txt").read_bytes() == b"new"
    assert not exists(join(url, "a.bin"))
    assert manifest_digest(manifest) != first


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_an_error_inside_leaves_nothing(url, error):
    def interrupted():
        with write_artifact(url, KIND, {}) as folder:
            (folder / "half").write_bytes(b"half")
            staging.append(folder)
            raise error

    staging: list[Path] = []
    with pytest.raises(error):
        interrupted()
    assert not has_artifact(url)
    assert not exists(url)
    assert not staging[0].exists()
    if is_local(url):
        assert list(local_path(url).parent.iterdir()) == []


def test_an_error_inside_keeps_the_old_artifact(url, open_it):
    def interrupted():
        with write_artifact(url, KIND, {}) as folder:
            (folder / "a.bin").write_bytes(b"half")
            raise RuntimeError

    write(url, revision=1)
    with pytest.raises(RuntimeError):
        interrupted()
    folder, manifest = open_it(url)
    assert manifest["revision"] == 1
    assert (folder / "a.bin").read_bytes() == FILES["a.bin"]
    if is_local(url):
        assert [path.name for path in local_path(url).parent.iterdir()] == ["artifact"]


def test_metadata_that_is_not_json_leaves_nothing(url):
    with pytest.raises(TypeError):
        write(url, bad=object())
    assert not has_artifact(url)


def test_a_published_artifact_leaves_nothing_beside_it(tmp_path):
    write(str(tmp_path / "artifact"))
    write(str(tmp_path / "artifact"))
    assert [path.name for path in tmp_path.iterdir()] == ["artifact"]
    assert (tmp_path / "artifact").stat().st_mode & 0o777 == 0o755


@pytest.mark.parametrize(
    "data", [FILES["a.bin"][:-1], FILES["a.bin"] + b"x", b"\x01" + FILES["a.bin"][1:], b""], ids=["short", "long", "bit", "empty"]
)
def test_a_file_that_was_changed(url, open_it, data):
    write(url)
    write_bytes(join(url, "a.bin"), data)
    with fails(f"{url}/a.bin: checksum does not match the manifest (truncated or changed); make the thing again"):
        open_it(url)


def test_a_missing_file(url, open_it):
    write(url)
    remove(join(url, "parts/0/b.txt"))
    with fails(f"{url}/parts/0/b.txt: missing, though the manifest lists it"):
        open_it(url)


def test_no_artifact(url, open_it):
    message = f"{url}: no complete thing here (manifest.json is missing); run the verb that makes it first"
    with fails(message):
        open_it(url)
    write_bytes(join(url, "a.bin"), b"an upload that was interrupted before its manifest")
    with fails(message):
        open_it(url)


def test_another_kind(url, open_it):
    write(url, kind="bundle")
    with fails(f"{url}: expected a thing, found a 'bundle'"):
        open_it(url)


def test_another_schema_version(url, open_it):
    write(url)
    write_json(join(url, "manifest.json"), read_json(join(url, "manifest.json")) | {"schema_version": 99})
    with fails(f"{url}: schema version 99, this promptmm reads {SCHEMA_VERSION}; make the thing again"):
        open_it(url)


@pytest.mark.parametrize("data", [b'{"kind": "thi', b"", b'{"kind": "\xff"}'], ids=["truncated", "empty", "not text"])
def test_a_damaged_manifest(url, open_it, data):
    write(url)
    write_bytes(join(url, "manifest.json"), data)
    with fails(f"{url}/manifest.json: not valid JSON"):
        open_it(url)


def test_a_remote_artifact_is_downloaded_once(tmp_path):
    url = f"memory://{uuid.uuid4().hex}/artifact"
    write(url)
    folder, _ = open_artifact(url, KIND, str(tmp_path))
    times = {path: path.stat().st_mtime_ns for path in folder.rglob("*")}
    again, _ = open_artifact(url, KIND, str(tmp_path))
    assert again == folder
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("*")} == times
    for damaged in (b"cut", bytes(len(FILES["a.bin"]))):  # a copy of another size or content is fetched again
        (folder / "a.bin").write_bytes(damaged)
        open_artifact(url, KIND, str(tmp_path))
        assert (folder / "a.bin").read_bytes() == FILES["a.bin"]


def test_a_new_remote_artifact_is_not_served_from_the_old_ones_cache(tmp_path):
    url = f"memory://{uuid.uuid4().hex}/artifact"
    write(url, {"x": b"old"})
    open_artifact(url, KIND, str(tmp_path))
    write(url, {"x": b"new"})
    folder, _ = open_artifact(url, KIND, str(tmp_path))
    assert (folder / "x").read_bytes() == b"new"


def test_several_writers_publish_one_manifest(url, open_it, tmp_path):
    """Each writer puts its part in place and measures it; the manifest makes the artifact exist."""
    files: dict = {}
    for part in range(3):
        work = tmp_path / f"writer-{part}"
        (work / "labels").mkdir(parents=True)
        (work / "labels" / f"{part}.bin").write_bytes(bytes([part]) * 10)
        measured = describe_files(work)
        assert list(measured) == [f"labels/{part}.bin"]
        for name in measured:
            write_bytes(join(url, name), (work / name).read_bytes())
        files |= measured
    assert not has_artifact(url)
    publish_manifest(url, KIND, {"revision": 2}, files)
    folder, manifest = open_it(url)
    assert manifest["revision"] == 2
    assert [(folder / name).read_bytes() for name in sorted(files)] == [bytes([part]) * 10 for part in range(3)]


def test_the_digest_is_of_the_content(tmp_path):
    for name in ("a", "b"):
        write(str(tmp_path / name), revision=1)
    write(str(tmp_path / "c"), revision=2)
    write(str(tmp_path / "d"), FILES | {"empty": b"x"}, revision=1)
    digests = [manifest_digest(read_manifest(str(tmp_path / name), KIND)) for name in "abcd"]
    assert digests[0] == digests[1]
    assert len(set(digests)) == 3


@pytest.fixture
def hashed(monkeypatch) -> list[str]:
    """The names of files whose checksums are computed, with every file a large one that may be noted at once."""
    names: list[str] = []

    def counted(path: Path) -> str:
        names.append(path.name)
        return sha256_of(path)

    monkeypatch.setattr(artifact, "LARGE_FILE", 1)
    monkeypatch.setattr(artifact, "SETTLED_SECONDS", 0.0)
    monkeypatch.setattr(artifact, "sha256_of", counted)
    return names


@pytest.mark.parametrize("kind", ["local", "memory"])
def test_a_large_file_that_was_verified_is_not_read_again(tmp_path, hashed, kind):
    url = str(tmp_path / "artifact") if kind == "local" else f"memory://{uuid.uuid4().hex}/artifact"
    write(url)
    opened = [open_artifact(url, KIND, str(tmp_path / "cache")) for _ in range(2)]
    assert opened[0] == opened[1]
    hashed.clear()
    open_artifact(url, KIND, str(tmp_path / "cache"))
    assert hashed == ["empty"]
    open_artifact(url, KIND, str(tmp_path / "cache"), verify="all")
    assert sorted(hashed) == ["a.bin", "b.txt", "empty", "empty"]


def test_a_writer_notes_what_it_has_computed_itself(tmp_path, hashed):
    write(str(tmp_path / "artifact"))
    hashed.clear()
    open_artifact(str(tmp_path / "artifact"), KIND)
    assert hashed == ["empty"]


def changed_in_place(path: Path) -> None:
    with open(path, "r+b") as file:
        file.write(b"\x07")


def replaced_by_another(path: Path) -> None:
    path.with_name("new").write_bytes(b"\x07" + FILES["a.bin"][1:])
    path.with_name("new").replace(path)


@pytest.mark.parametrize("damage", [changed_in_place, replaced_by_another])
def test_a_large_file_that_was_changed_after_it_was_verified(tmp_path, hashed, damage):
    """Also where size and time of change are those of before, as after a copy that keeps times."""
    url, path = str(tmp_path / "artifact"), tmp_path / "artifact" / "a.bin"
    write(url)
    open_artifact(url, KIND)
    before = path.stat()
    damage(path)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    for verify in ("changed", "all"):
        with fails(f"{path}: checksum does not match the manifest"):
            open_artifact(url, KIND, verify=verify)
    open_artifact(url, KIND, verify="sizes")  # what it does not look at


def test_a_copy_is_verified_where_it_lies(tmp_path, hashed):
    write(str(tmp_path / "artifact"))
    open_artifact(str(tmp_path / "artifact"), KIND)
    shutil.copytree(tmp_path / "artifact", tmp_path / "copy")
    hashed.clear()
    open_artifact(str(tmp_path / "copy"), KIND)
    assert sorted(hashed) == ["a.bin", "b.txt", "empty"]


@pytest.mark.parametrize("note", [b"", b"[]", b'{"a.bin": 1}', b"\xff"])
def test_a_damaged_note_says_nothing(tmp_path, hashed, note):
    url = str(tmp_path / "artifact")
    write(url)
    (tmp_path / "artifact" / artifact.VERIFIED).write_bytes(note)
    changed_in_place(tmp_path / "artifact" / "a.bin")
    with fails("a.bin: checksum does not match the manifest"):
        open_artifact(url, KIND)


def test_a_file_that_has_only_just_changed_is_not_noted(tmp_path, hashed, monkeypatch):
    monkeypatch.setattr(artifact, "SETTLED_SECONDS", 3600.0)
    write(str(tmp_path / "artifact"))
    open_artifact(str(tmp_path / "artifact"), KIND)
    assert not (tmp_path / "artifact" / artifact.VERIFIED).exists()


def test_small_files_are_always_verified(tmp_path):
    url = str(tmp_path / "artifact")
    write(url)
    changed_in_place(tmp_path / "artifact" / "a.bin")
    for verify in ("changed", "all", "sizes"):
        with fails("a.bin: checksum does not match the manifest"):
            open_artifact(url, KIND, verify=verify)


def test_another_way_to_verify_is_refused(tmp_path):
    write(str(tmp_path / "artifact"))
    with fails("verify='none': expected one of changed, all, sizes"):
        open_artifact(str(tmp_path / "artifact"), KIND, verify="none")


OUTSIDE = ["../x", "../../x", "/tmp/x", "a/../../x", "a//x", "./x", "", "a/", "C:/x", "a\\x", "a\0x", "manifest.json", "a/.verified.json"]


@pytest.mark.parametrize("name", OUTSIDE)
def test_a_manifest_that_names_files_outside_is_refused(url, open_it, tmp_path, name):
    """Whoever wrote a manifest could otherwise write and read any file of whoever opens the artifact."""
    write(url)
    manifest = read_json(join(url, "manifest.json"))
    write_json(join(url, "manifest.json"), sealed({**manifest, "files": {**manifest["files"], name: manifest["files"]["a.bin"]}}))
    before = sorted(tmp_path.rglob("*"))
    with fails(url, f"the manifest names the file {name!r}", "source that you do not trust"):
        open_it(url)
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize("facts", [None, 7, {}, {"bytes": -1}, {"bytes": True}, {"bytes": "9"}, {"sha256": "x"}, {"sha256": None}])
def test_a_manifest_without_sizes_and_checksums_is_refused(url, open_it, facts):
    write(url)
    manifest = read_json(join(url, "manifest.json"))
    wrong = {**manifest["files"]["a.bin"], **facts} if isinstance(facts, dict) and facts else facts
    write_json(join(url, "manifest.json"), sealed({**manifest, "files": {"a.bin": wrong}}))
    with fails(url, "no size and SHA-256 of the file 'a.bin'"):
        open_it(url)
    for files in (None, [], "a.bin"):
        write_json(join(url, "manifest.json"), sealed({**manifest, "files": files}))
        with fails(url, "no table of files"):
            open_it(url)


@pytest.mark.parametrize("is_folder", [False, True])
def test_links_out_of_the_folder_are_refused(tmp_path, open_it, is_folder):
    write(str(tmp_path / "artifact"))
    linked = tmp_path / "artifact" / ("parts" if is_folder else "a.bin")
    shutil.move(linked, tmp_path / "elsewhere")
    linked.symlink_to(tmp_path / "elsewhere")
    with fails("a link that leads out of the artifact's folder"):
        open_it(str(tmp_path / "artifact"))


def test_a_linked_folder_and_links_inside_are_read(tmp_path, open_it):
    write(str(tmp_path / "artifact"))
    folder = tmp_path / "artifact"
    shutil.move(folder / "a.bin", folder / "real.bin")
    (folder / "a.bin").symlink_to("real.bin")
    (tmp_path / "link").symlink_to(folder)
    assert (open_it(str(tmp_path / "link"))[0] / "a.bin").read_bytes() == FILES["a.bin"]


def test_a_file_that_is_larger_than_the_manifest_says_is_not_fetched(tmp_path, open_it):
    url = f"memory://{uuid.uuid4().hex}/artifact"
    write(url)
    write_bytes(join(url, "a.bin"), b"x" * 10_000)
    with fails(f"{url}/a.bin: checksum does not match the manifest"):
        open_it(url)
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]


@pytest.mark.parametrize(("umask", "folder_mode", "file_mode"), [(0o022, 0o755, 0o644), (0o027, 0o750, 0o640), (0o077, 0o700, 0o600)])
def test_modes_follow_the_umask(tmp_path, umask, folder_mode, file_mode):
    """So that a bundle that one user writes is served by another."""
    before = os.umask(umask)
    try:
        with write_artifact(str(tmp_path / "artifact"), KIND, {}) as folder:
            save_tensors(folder / "x.safetensors", {"x": torch.zeros(3)})
            (folder / "y").write_bytes(b"y")
    finally:
        os.umask(before)
    modes = {path.name: path.stat().st_mode & 0o777 for path in (tmp_path / "artifact").iterdir()}
    assert (tmp_path / "artifact").stat().st_mode & 0o777 == folder_mode
    assert modes == {"x.safetensors": file_mode, "y": file_mode, "manifest.json": file_mode}


def test_nothing_writes_private_files():
    """`safetensors.torch.save_file` makes files that nobody else may read, whatever the umask: `save_tensors` stands for it."""
    root = Path(artifact.__file__).parents[1]
    packages = [root / name for name in ("core", "graph_store", "distributed", "jobs")]
    assert [
        path for package in packages for path in package.rglob("*.py") if re.search("import save_file|save_file\\(", path.read_text())
    ] == []


def test_a_folder_of_copies_that_others_can_change_is_refused(tmp_path, monkeypatch):
    """What is put there after it was verified would be used."""
    monkeypatch.setattr(artifact.tempfile, "gettempdir", lambda: str(tmp_path))
    url, default = f"memory://{uuid.uuid4().hex}/artifact", tmp_path / f"promptmm-cache-{os.getuid()}"
    write(url)
    folder, _ = open_artifact(url, KIND)
    assert folder.parent == default
    assert default.stat().st_mode & 0o777 == 0o700
    for mode in (0o770, 0o702):
        default.chmod(mode)
        with fails(default, "others can change what is in this folder", "cluster.cache_dir"):
            open_artifact(url, KIND)
    default.chmod(0o700)
    os.rename(default, tmp_path / "elsewhere")
    default.symlink_to(tmp_path / "elsewhere")
    with fails(default, "others can change"):
        open_artifact(url, KIND)
    own = tmp_path / "own"
    own.mkdir()
    open_artifact(url, KIND, str(own))
    own.chmod(0o777)
    with fails(own, "others can change"):
        open_artifact(url, KIND, str(own))


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a folder away")
def test_a_folder_of_copies_of_another_user_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(artifact.tempfile, "gettempdir", lambda: str(tmp_path))
    url, default = f"memory://{uuid.uuid4().hex}/artifact", tmp_path / f"promptmm-cache-{os.getuid()}"
    write(url)
    default.mkdir(0o700)
    os.chown(default, 12345, 12345)
    with fails(default, "others can change"):
        open_artifact(url, KIND)


def test_a_manifest_that_was_changed_is_refused(url, open_it):
    write(url)
    path = join(url, "manifest.json")
    manifest = read_json(path)
    assert manifest["digest"] == manifest_digest(manifest)
    write_json(path, {**manifest, "note": "changed"})
    with fails(url, "changed since it was written"):
        open_it(url)
    del manifest["digest"]  # as earlier versions wrote manifests
    write_json(path, manifest)
    open_it(url)
