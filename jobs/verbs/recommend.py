"""`promptmm recommend`: top-k lists from the bundle."""

from collections.abc import Sequence

from ...core.errors import InputError
from ...core.serving import Recommendation, Recommender, load_student
from ...core.storage import join, read_bytes, staged_file
from ...distributed.progress import with_progress
from ..sections import RecommendConfig
from ..settings import Settings
from .verb import Verb

PARQUET_MAGIC = b"PAR1"
ADVICE = "write an id on each line, or a Parquet file with one column user"


def recommend(settings: Settings) -> None:
    """student/ -> top-k lists, printed or written to Parquet."""
    config = settings.recommend
    users = named_users(config)
    student = load_student(join(settings.dir, "student"), settings.cluster.cache_dir)
    if config.output is not None:
        count = _write_lists(config.output, student, users, config)
        print(f"[recommend] {count:,} lists of {config.k} written to {config.output}", flush=True)
        return
    for recommendation in student.recommend(_first_user(student) if users is None else users, config.k, config.exclude_seen):
        _print_list(recommendation, config.k)


def named_users(config: RecommendConfig) -> list[str] | None:
    """Returns the raw ids of the users for whom lists are made, as they are set or as their file has them; None where neither is set.

    Raises:
        InputError: the file has no ids, or cannot be read as text or as Parquet with a column of ids.
    """
    if config.users_from is None:
        return config.users
    url, data = config.users_from, read_bytes(config.users_from)
    users = _ids_of_parquet(url, data) if data.startswith(PARQUET_MAGIC) and data.endswith(PARQUET_MAGIC) else _ids_of_text(url, data)
    if not users:
        raise InputError(f"recommend.users_from={url}: the file has no user ids")
    return users


def _ids_of_text(url: str, data: bytes) -> list[str]:
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise InputError(f"recommend.users_from={url}: not UTF-8 text ({error}); {ADVICE}") from error
    if "\0" in text:
        raise InputError(f"recommend.users_from={url}: not UTF-8 text, since it has zero bytes; {ADVICE}")
    lines = [line.removesuffix("\r") for line in text.split("\n")]
    return [line for line in lines if line.strip()]


def _ids_of_parquet(url: str, data: bytes) -> list[str]:
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
    return id_column(url, table, "user", "recommend.users_from").to_pylist()


def _first_user(student: Recommender) -> list[str]:
    """The first user with train items, as an example for the terminal."""
    return [next((user for user, degree in zip(student.user_ids, student.num_seen().tolist()) if degree), student.user_ids[0])]


def _print_list(recommendation: Recommendation, k: int) -> None:
    print(f"top {k} for user {recommendation.user}:", flush=True)
    for place, (item, score) in enumerate(zip(recommendation.items, recommendation.scores), 1):
        print(f"  {place:3d}. {item}  ({score:.4f})", flush=True)


def _write_lists(url: str, student: Recommender, users: Sequence[str] | None, config: RecommendConfig) -> int:
    """Writes lists as they are made, and says how far it is; returns their number."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    schema = pa.schema([("user", pa.string()), ("items", pa.list_(pa.string())), ("scores", pa.list_(pa.float64()))])
    batches = student.recommend_in_batches(users, config.k, config.exclude_seen)
    total = len(student.user_ids if users is None else users)
    with staged_file(url) as path, pq.ParquetWriter(path, schema) as writer:
        for batch in with_progress(batches, "recommend", "user", total, lambda batch: batch.num_rows):
            writer.write_batch(batch)
    return total


RECOMMEND: Verb[Settings] = Verb("recommend", recommend, ("run", "recommend", "cluster"), is_stage=True)
