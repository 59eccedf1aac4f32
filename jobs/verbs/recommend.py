"""`promptmm recommend`: top-k lists from the bundle."""

from ...core.serving import Recommendation, Recommender, load_student
from ...core.storage import join, write_bytes
from ..sections import RecommendConfig
from ..settings import Settings
from .verb import Verb


def recommend(settings: Settings) -> None:
    """student/ -> top-k lists, printed or written to Parquet."""
    config = settings.recommend
    student = load_student(join(settings.dir, "student"), settings.cluster.cache_dir)
    lists = student.recommend(_users(config, student), config.k, config.exclude_seen)
    if config.output is not None:
        _write_lists(config.output, lists)
        print(f"[recommend] {len(lists):,} lists of {config.k} written to {config.output}", flush=True)
        return
    for recommendation in lists:
        print(f"top {config.k} for user {recommendation.user}:", flush=True)
        for place, (item, score) in enumerate(zip(recommendation.items, recommendation.scores), 1):
            print(f"  {place:3d}. {item}  ({score:.4f})", flush=True)


def _users(config: RecommendConfig, student: Recommender) -> list[str]:
    """Raw ids as set; else of all users for a file, and of the first user with train items for the terminal."""
    if config.users is not None:
        return config.users
    if config.output is not None:
        return student.user_ids
    return [next((user for user, degree in zip(student.user_ids, student.num_seen().tolist()) if degree), student.user_ids[0])]


def _write_lists(url: str, lists: list[Recommendation]) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    sink = pa.BufferOutputStream()
    columns = {"user": [r.user for r in lists], "items": [r.items for r in lists], "scores": [r.scores for r in lists]}
    pq.write_table(pa.table(columns), sink)
    write_bytes(url, sink.getvalue().to_pybytes())


RECOMMEND: Verb[Settings] = Verb("recommend", recommend, ("run", "recommend", "cluster"), is_stage=True)
