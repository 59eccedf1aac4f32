"""Writes the lists of many users: into one Parquet file, or a part of the users at a time into a folder of Parquet files.

A folder of lists has `part-<5 digits>.parquet` for each part of some 65,536 users. While lists are made, `_progress/begun.json` says of
what, and `_progress/part-<5 digits>.json` has the facts of each part that is complete: whoever is asked for the same lists again makes the
other parts. At the end `_lists.json` has all of that. Parts do not depend on who makes them, and have the rows that one file would have.
"""

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor

from .artifact import manifest_digest, sha256_of
from .errors import InputError
from .serving import Recommender, load_student, users_a_batch
from .storage import JsonObject, exists, filesystem, is_local, join, local_path, read_bytes, read_json, remove, staged_file, write_json
from .tensor_file import save_tensors

if TYPE_CHECKING:
    import pyarrow as pa

USERS_A_PART = 1 << 16
DONE, PROGRESS = "_lists.json", "_progress"  # readers of Parquet folders leave out names that begin so
BEGUN, ROWS = "begun.json", "rows.safetensors"
MAKE_ANEW = "name another folder, or make them anew with run.redo=recommend (from Python: anew=True)"


@dataclass(frozen=True)
class ListJob:
    """Asks for the lists of many users in a folder.

    Attributes:
        bundle_url: The serving bundle.
        url: The folder.
        k: Items a list.
        exclude_seen: Whether a user's train items are left out.
        num_users: The number of lists.
        users_a_part: Users of every part but the last.
        names_users: Whether the users are those of `_progress/rows.safetensors`, by index; else all of the bundle.
        cache_dir: Folder for a local copy of a remote bundle.
    """

    bundle_url: str
    url: str
    k: int
    exclude_seen: bool
    num_users: int
    users_a_part: int
    names_users: bool
    cache_dir: str | None = None

    @property
    def num_parts(self) -> int:
        """Returns the number of parts."""
        return -(-self.num_users // self.users_a_part)

    def users_of(self, number: int) -> int:
        """Returns the number of users of a part."""
        return min(self.users_a_part, self.num_users - number * self.users_a_part)


def write_lists(
    bundle_url: str,
    url: str,
    user_ids: "Sequence[Any] | pa.Array | None" = None,
    k: int = 20,
    exclude_seen: bool = True,
    cache_dir: str | None = None,
    anew: bool = False,
) -> int:
    """Writes the lists of many users to a folder of Parquet files, in this process; goes on where an interrupted call stopped.

    Args:
        bundle_url: The serving bundle, on any fsspec URL.
        url: The folder: one that is not there yet or is empty, or that has lists which were begun.
        user_ids: Raw ids, compared as strings; all users by default.
        k: Items a list.
        exclude_seen: Whether a user's train items are left out.
        cache_dir: Folder for a local copy where the bundle is remote.
        anew: Whether lists that are there already, finished or not, are removed first.

    Returns:
        The number of lists that were written now.

    Raises:
        InputError: as `begin_lists`, and as `Recommender.recommend`.
    """
    student = load_student(bundle_url, cache_dir)
    rows = None if user_ids is None else student.rows_of(user_ids)
    job = begin_lists(bundle_url, student, url, rows, k, exclude_seen, cache_dir, anew)
    return sum(make_parts(job, student)) if job is not None else 0


def begin_lists(
    bundle_url: str, student: Recommender, url: str, rows: Tensor | None, k: int, exclude_seen: bool, cache_dir: str | None, anew: bool
) -> ListJob | None:
    """Notes in a folder which lists are to be made; returns the job, or None where they are complete.

    Args:
        bundle_url: The serving bundle.
        student: The same, loaded.
        url: The folder.
        rows: The users by index, int64 [n]; None: all.
        k, exclude_seen, cache_dir: As in `ListJob`.
        anew: Whether lists that are there already are removed first.

    Raises:
        InputError: k is not possible, the folder has something else in it, or lists of something else, or parts are missing from lists
            that were complete.
    """
    student.allowed(k)
    batch, num_users = users_a_batch(k), len(student.user_ids) if rows is None else rows.numel()
    job = ListJob(
        bundle_url, url, k, exclude_seen, num_users, batch * max(1, USERS_A_PART // batch), rows is not None, cache_dir
    )  # whole batches, since a score's last digits may depend on who else is in a batch
    wanted = {
        "bundle": manifest_digest(student.manifest),
        "users": "all" if rows is None else hashlib.sha256(rows.numpy().data).hexdigest(),
        "num_users": job.num_users,
        "users_a_part": job.users_a_part,
        "k": k,
        "exclude_seen": exclude_seen,
    }
    found = None if anew else lists_at(url)
    if found is not None:
        _check_same(url, found, wanted)
        if exists(join(url, DONE)):
            _check_complete(job)
            return None
    else:
        _clear(url, anew)
        if rows is not None:
            with staged_file(join(url, PROGRESS, ROWS)) as path:
                save_tensors(path, {"rows": rows})
        write_json(join(url, PROGRESS, BEGUN), wanted)  # last: whoever sees it finds the rest
    return job


def lists_at(url: str) -> JsonObject | None:
    """Returns what the lists in a folder were made or begun of; None where there are none.

    Raises:
        InputError: there is a file at `url`.
    """
    if is_local(url) and local_path(url).is_file():
        raise InputError(f"{url}: a file is there, and lists go into a folder; name another one, or a file that ends in .parquet")
    for name in (join(url, DONE), join(url, PROGRESS, BEGUN)):
        if exists(name):
            found = read_json(name)
            return dict(found.get("made_with", found))
    return None


def _check_same(url: str, found: JsonObject, wanted: JsonObject) -> None:
    """Raises InputError where the lists of a folder are of something else than what is wanted."""
    if found == wanted:
        return
    changed = [f"{name}={found.get(name)} (now {wanted[name]})" for name in ("k", "exclude_seen") if found.get(name) != wanted[name]]
    changed += ["another bundle"] if found.get("bundle") != wanted["bundle"] else []
    changed += ["other users"] if any(found.get(name) != wanted[name] for name in ("users", "num_users")) else []
    raise InputError(f"{url}: lists were begun here with {', '.join(changed) or 'parts of another size'}; {MAKE_ANEW}")


def _check_complete(job: ListJob) -> None:
    """Raises InputError where a part of complete lists is missing, or has another size."""
    sizes = _sizes(job.url)
    wrong = [name for name, facts in read_json(join(job.url, DONE))["parts"].items() if sizes.get(name) != facts["bytes"]]
    if wrong:
        raise InputError(f"{join(job.url, wrong[0])}: missing or of another size, though {DONE} lists it; {MAKE_ANEW}")


def _clear(url: str, anew: bool) -> None:
    """Makes room for lists in a folder.

    Args:
        url: The folder.
        anew: Whether to remove lists that are there.

    Raises:
        InputError: the folder has something else in it.
    """
    names = sorted(_sizes(url))
    if anew and lists_at(url) is not None:
        for name in names:
            if name.startswith("part-"):
                remove(join(url, name))
        remove(join(url, DONE))  # after its parts: what a killed process leaves is then known for lists that lack some
    elif names not in ([], [PROGRESS]):  # a process that was killed when it had begun
        raise InputError(
            f"{url}: a folder is there with other files ({names[0]}); lists need one of their own, or the name of a file that ends in "
            ".parquet"
        )
    remove(join(url, PROGRESS))


def _sizes(url: str) -> dict[str, int]:
    """Returns the bytes of every file, and 0 of every folder, in a folder, by name; hidden files are left out."""
    fs, path = filesystem(url)
    fs.invalidate_cache()
    if not fs.exists(path):
        return {}
    names = {entry["name"].rstrip("/").rpartition("/")[2]: entry for entry in fs.ls(path, detail=True)}
    return {name: entry["size"] if entry["type"] == "file" else 0 for name, entry in names.items() if name and not name.startswith(".")}


def parts_left(job: ListJob) -> list[int]:
    """Lists the parts that are still to be made."""
    made, sizes = _sizes(join(job.url, PROGRESS)), _sizes(job.url)

    def is_made(number: int) -> bool:
        name = _name(number)
        return _facts_name(number) in made and sizes.get(name) == read_json(join(job.url, PROGRESS, _facts_name(number)))["bytes"]

    return [number for number in range(job.num_parts) if not is_made(number)]


class PartWriter:
    """Makes parts of a job's lists.

    Args:
        job: The job.
        student: Its bundle, where it is loaded already.
    """

    def __init__(self, job: ListJob, student: Recommender | None = None) -> None:
        self.job, self.student = job, student or load_student(job.bundle_url, job.cache_dir)
        self.rows = _read_rows(job.url) if job.names_users else range(job.num_users)

    def write(self, number: int) -> int:
        """Writes a part, then its facts; returns the number of its lists."""
        job, first = self.job, number * self.job.users_a_part
        batches = self.student.batches(self.rows[first : first + job.users_a_part], job.k, job.exclude_seen)
        with staged_file(join(job.url, _name(number))) as path:
            num_lists = sum(write_parquet(path, batches))
            facts = {"bytes": path.stat().st_size, "sha256": sha256_of(path), "users": num_lists}
        write_json(join(job.url, PROGRESS, _facts_name(number)), facts)
        return num_lists


def make_parts(job: ListJob, student: Recommender) -> Iterator[int]:
    """Makes the parts that are left in this process, and completes the lists; yields the number of lists of each part."""
    writer = PartWriter(job, student)
    for number in parts_left(job):
        yield writer.write(number)
    publish_lists(job)


def publish_lists(job: ListJob) -> None:
    """Completes the lists of a job all of whose parts are made."""
    facts = {_name(number): read_json(join(job.url, PROGRESS, _facts_name(number))) for number in range(job.num_parts)}
    write_json(join(job.url, DONE), {"made_with": read_json(join(job.url, PROGRESS, BEGUN)), "parts": facts})
    remove(join(job.url, PROGRESS))


def write_parquet(path: Path, batches: "Iterable[pa.RecordBatch]") -> Iterator[int]:
    """Writes lists to a local Parquet file, a row group for each batch; yields the number of lists of each."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    schema = pa.schema([("user", pa.string()), ("items", pa.list_(pa.string())), ("scores", pa.list_(pa.float64()))])
    with pq.ParquetWriter(path, schema) as writer:
        for batch in batches:
            writer.write_batch(batch)
            yield batch.num_rows


def _read_rows(url: str) -> Tensor:
    from safetensors.torch import load, load_file

    at = join(url, PROGRESS, ROWS)
    return load_file(str(local_path(at)))["rows"] if is_local(at) else load(read_bytes(at))["rows"]


def _name(number: int) -> str:
    return f"part-{number:05d}.parquet"


def _facts_name(number: int) -> str:
    return f"part-{number:05d}.json"
