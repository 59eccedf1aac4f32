"""`promptmm recommend`: top-k lists from the bundle."""

import time
from collections.abc import Sequence

from ...core.errors import InputError
from ...core.serving import Recommendation, Recommender, load_student
from ...core.storage import join, read_bytes, staged_file
from ..sections import RecommendConfig
from ..settings import Settings
from .verb import Verb

PARQUET_MAGIC = b"PAR1"
LINE_SECONDS = 15.0
ADVICE = "write an id on each line, or a Parquet file with one column user"


def recommend(settings: Settings) -> None:
    """student/ -> top-k lists, printed or written to Parquet."""
    config = settings.recommend
    users = named_users(config)
    student = load_student(join(settings.dir, "student"), settings.cluster.cache_dir)
    if config.output is not None:
        _write_lists(config.output, student, users, config)
        print(
            f"[recommend] {len(student.user_ids if users is None else users):,} lists of {config.k} written to {config.output}", flush=True
        )
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

    try:
        file = pq.ParquetFile(pa.BufferReader(data))
        names = file.schema_arrow.names
        if names.count("user") != 1:
            raise InputError(f"recommend.users_from={url}: {names.count('user')} columns are named user among {', '.join(names)}; {ADVICE}")
        column = file.read(columns=["user"])["user"]
    except (OSError, pa.ArrowException) as error:
        raise InputError(f"recommend.users_from={url}: damaged Parquet ({error}); write the file again") from error
    kind = column.type.value_type if pa.types.is_dictionary(column.type) else column.type
    if not (pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_integer(kind)):
        raise InputError(f"recommend.users_from={url}: the column user is {kind}; write ids as strings or integers")
    users = column.to_pylist()
    if None in users:
        raise InputError(f"recommend.users_from={url}: row {users.index(None) + 1} of {len(users)} has no user id; leave it out")
    return [str(user) for user in users]


def _first_user(student: Recommender) -> list[str]:
    """The first user with train items, as an example for the terminal."""
    return [next((user for user, degree in zip(student.user_ids, student.num_seen().tolist()) if degree), student.user_ids[0])]


def _print_list(recommendation: Recommendation, k: int) -> None:
    print(f"top {k} for user {recommendation.user}:", flush=True)
    for place, (item, score) in enumerate(zip(recommendation.items, recommendation.scores), 1):
        print(f"  {place:3d}. {item}  ({score:.4f})", flush=True)


def _write_lists(url: str, student: Recommender, users: Sequence[str] | None, config: RecommendConfig) -> int:
    """Writes lists as they are made, and says every `LINE_SECONDS` how far it is; returns their number."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    schema = pa.schema([("user", pa.string()), ("items", pa.list_(pa.string())), ("scores", pa.list_(pa.float64()))])
    batches = student.recommend_in_batches(users, config.k, config.exclude_seen)
    total, done = len(student.user_ids if users is None else users), 0
    said = started = time.monotonic()
    with staged_file(url) as path, pq.ParquetWriter(path, schema) as writer:
        for batch in batches:
            writer.write_batch(batch)
            done, now = done + batch.num_rows, time.monotonic()
            if now - said >= LINE_SECONDS and done < total:
                said, rate = now, done / (now - started)
                print(f"[recommend] user {done:,}/{total:,}, {rate:,.0f} users/s, {(total - done) / rate:.0f} s left", flush=True)
    return done


RECOMMEND: Verb[Settings] = Verb("recommend", recommend, ("run", "recommend", "cluster"), is_stage=True)
