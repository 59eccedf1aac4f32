"""`promptmm recommend`: top-k lists from the bundle."""

from typing import TYPE_CHECKING

from ...core.artifact import has_artifact
from ...core.errors import InputError
from ...core.lists import begin_lists, lists_at, make_parts, parts_left, write_parquet
from ...core.serving import Recommendation, Recommender, load_student
from ...core.storage import is_local, join, local_path, read_bytes, staged_file
from ...distributed.progress import with_progress
from ...distributed.worker import torch_threads
from ..runs.folder import need_shared_storage
from ..sections import RecommendConfig
from ..settings import Settings
from .verb import Verb

if TYPE_CHECKING:
    import pyarrow as pa

PARQUET_MAGIC, BYTE_ORDER_MARK = b"PAR1", b"\xef\xbb\xbf"
ADVICE = "write an id on each line, or a Parquet file with one column user"


def recommend(settings: Settings) -> None:
    """student/ -> top-k lists, printed or written to Parquet: a file, or a folder of files."""
    config = settings.recommend
    users = named_users(config)
    student = load_student(join(settings.dir, "student"), settings.cluster.cache_dir)
    with torch_threads(settings.cluster.list_threads):
        if config.output is None:
            for recommendation in student.recommend([student.first_user()] if users is None else users, config.k, config.exclude_seen):
                _print_list(recommendation, config.k)
        elif config.is_one_file:
            _write_file(config.output, student, users, config)
        else:
            _write_folder(settings, config.output, student, users)


def named_users(config: RecommendConfig) -> "pa.Array | None":
    """Returns the raw ids of the users for whom lists are made, as they are set or as their file has them; None where neither is set.

    Raises:
        InputError: the file has no ids, or cannot be read as text or as Parquet with a column of ids.
    """
    import pyarrow as pa

    if config.users_from is None:
        return None if config.users is None else pa.array(config.users, pa.large_string())
    url, data = config.users_from, read_bytes(config.users_from)
    users = _ids_of_parquet(url, data) if data.startswith(PARQUET_MAGIC) and data.endswith(PARQUET_MAGIC) else _ids_of_text(url, data)
    if not len(users):
        raise InputError(f"recommend.users_from={url}: the file has no user ids")
    return users


def _ids_of_text(url: str, data: bytes) -> "pa.Array":
    import pyarrow as pa
    import pyarrow.compute as pc

    try:
        text = pa.array([data.removeprefix(BYTE_ORDER_MARK)], pa.large_binary()).cast(pa.large_string())
    except pa.ArrowInvalid as error:
        raise InputError(f"recommend.users_from={url}: not UTF-8 text ({error}); {ADVICE}") from error
    if b"\0" in data:
        raise InputError(f"recommend.users_from={url}: not UTF-8 text, since it has zero bytes; {ADVICE}")
    lines = pc.replace_substring_regex(pc.split_pattern(text, "\n").flatten(), r"\r$", "")
    return lines.filter(pc.not_equal(pc.utf8_trim_whitespace(lines), ""))


def _ids_of_parquet(url: str, data: bytes) -> "pa.Array":
    import pyarrow as pa
    import pyarrow.parquet as pq

    from ...graph_store.sources.table_file import id_column, unreadable

    try:
        file = pq.ParquetFile(pa.BufferReader(data))
        names = file.schema_arrow.names
        if names.count("user") != 1:
            raise InputError(f"recommend.users_from={url}: {names.count('user')} columns are named user among {', '.join(names)}; {ADVICE}")
        table = file.read(columns=["user"])
    except (OSError, pa.ArrowException) as error:
        raise unreadable(url, error) from error
    return id_column(url, table, "user", "recommend.users_from")


def check_output(settings: Settings) -> None:
    """Raises InputError where lists are in the folder of the output already, of a bundle that is still to be made."""
    config = settings.recommend
    if config.output is None or config.is_one_file or settings.run.redo is not None or has_artifact(join(settings.dir, "student")):
        return
    if lists_at(config.output) is not None:
        raise InputError(
            f"recommend.output={config.output}: lists of another run are there; name another folder, or remove them with run.redo=recommend"
        )


def _print_list(recommendation: Recommendation, k: int) -> None:
    print(f"top {k} for user {recommendation.user}:", flush=True)
    for place, (item, score) in enumerate(zip(recommendation.items, recommendation.scores), 1):
        print(f"  {place:3d}. {item}  ({score:.4f})", flush=True)


def _write_file(url: str, student: Recommender, users: "pa.Array | None", config: RecommendConfig) -> None:
    """Writes lists to one file as they are made, and says how far it is."""
    batches = student.recommend_in_batches(users, config.k, config.exclude_seen)
    total = len(student.user_ids) if users is None else len(users)
    with staged_file(url) as path:
        for _ in with_progress(write_parquet(path, batches), "recommend", "user", total, int):
            pass
    print(f"[recommend] {total:,} lists of {config.k} written to {url}", flush=True)


def _write_folder(settings: Settings, url: str, student: Recommender, users: "pa.Array | None") -> None:
    """Writes lists to a folder, a part of the users at a time: by actors of Ray, or in this process; goes on after finished parts."""
    config, cluster = settings.recommend, settings.cluster
    bundle_url, url = (str(local_path(each)) if is_local(each) else each for each in (join(settings.dir, "student"), url))
    if cluster.executor == "ray":
        _need_ray(settings, url)
    rows = None if users is None else student.rows_of(users)
    anew = settings.run.redo is not None
    job = begin_lists(bundle_url, student, url, rows, config.k, config.exclude_seen, cluster.cache_dir, anew)
    if job is None:
        print(f"[recommend] already done: {url}", flush=True)
        return
    if cluster.executor == "ray":
        from ...distributed.execution.list_pool import make_parts_on_ray

        make_parts_on_ray(job, cluster)
    else:
        left = sum(job.users_of(number) for number in parts_left(job))
        for _ in with_progress(make_parts(job, student), "recommend", "user", left, int):
            pass
    print(f"[recommend] {job.num_users:,} lists of {config.k} written to {url}, {job.num_parts:,} files", flush=True)


def _need_ray(settings: Settings, url: str) -> None:
    """Raises an error where Ray is not installed, or its processes cannot reach the bundle or the lists."""
    import ray  # noqa: F401

    need_shared_storage(settings, "recommend")
    if url.startswith("memory://"):
        raise InputError(
            f"recommend.output={url}: lists are made in several processes, which share no memory; use a folder, an object store, or "
            "cluster.executor=local"
        )


RECOMMEND: Verb[Settings] = Verb("recommend", recommend, ("run", "recommend", "cluster"), is_stage=True, only_reads=True)
