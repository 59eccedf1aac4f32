"""Settings of `prepare` (section `source`) and `partition` (section `graph`)."""

from dataclasses import dataclass

from ..core.errors import InputError
from ..core.settings import check_bounds, setting
from .sources.kinds import SOURCES, source_of


@dataclass(frozen=True)
class SourceConfig:
    """Where the raw catalog comes from, and how it is split where the source has no split of its own."""

    format: str = setting(
        "synthetic",
        f"format of the raw catalog: {', '.join(SOURCES.names)}, or your own as module:function",
    )
    path: str | None = setting(
        None, "folder (path or URL) of the raw catalog; every format that ships needs it but synthetic, whose catalog generate writes there"
    )
    modalities: dict[str, str] | None = setting(
        None,
        "modality name -> feature file, relative to source.path or absolute; not set: every *_feat.npy there is; {}: none",
    )
    interactions: str | None = setting(
        None,
        "interaction file of parquet and mmrec; not set: interactions.parquet, interactions.csv or the only *.inter",
    )
    items: str | None = setting(
        None,
        "file that lists every item (parquet format); not set: items.parquet or items.csv where there is one, "
        "else an item is whatever an interaction or a feature file names",
    )
    user_column: str | None = setting(None, "column of user ids; not set: user (parquet) or userID (mmrec)")
    item_column: str | None = setting(None, "column of item ids, in every file; not set: item (parquet) or itemID (mmrec)")
    timestamp_column: str | None = setting(None, "column of times, any unit; not set: timestamp where there is one")
    split_column: str | None = setting(
        None, "column of train/validation/test or 0/1/2; not set: split (parquet) or x_label (mmrec) where there is one"
    )
    vector_column: str = setting("vector", "column of feature vectors in the feature files of the parquet format")
    split: str = setting(
        "random",
        "how a source without a split is split, per user: at random or latest last",
        choices=("random", "time"),
    )
    train_ratio: float = setting(0.8, "share of a user's interactions that train, where the source has no split", gt=0, le=1)
    validation_ratio: float = setting(0.1, "share that validates; the rest tests", ge=0, lt=1)
    cold_items: float = setting(
        0.0,
        "share of the items that have features and interactions to hold out whole: all their interactions become the split cold, on which "
        "evaluate measures how items that nobody has touched are ranked",
        ge=0,
        lt=1,
    )
    validation_from_train: float = setting(
        0.0,
        "share of a user's train interactions, drawn at random, that validates where the source has a test split but no validation split: "
        "without one no epoch, no setting and no weight can be chosen; refit trains on all of them in the end",
        ge=0,
        lt=1,
    )
    joined: str | None = setting(
        None,
        "dataset/ of another run, which this run takes in place of a source, with its validation interactions among train and none left to "
        "choose by; refit sets it when every choice is made",
    )
    memory_mib: int = setting(1024, "memory of prepare for interactions that it indexes and sorts, MiB, beside the raw ids", ge=16)
    seed: int = setting(0, "seed of the random split, of the validation_from_train, of the cold items and of the synthetic catalog", ge=0)
    synthetic_num_users: int = setting(3000, "users in the synthetic catalog", ge=10)
    synthetic_num_items: int = setting(2000, "items in the synthetic catalog", ge=20)
    synthetic_dims: dict[str, int] | None = setting(
        None,
        "modality name -> dimension in the synthetic catalog; with three or more the last is noise; "
        "not set: visual 128, textual 96, acoustic 64",
    )
    synthetic_interactions_per_user: float = setting(20.0, "mean interactions of a synthetic user", ge=1)
    synthetic_num_clusters: int = setting(40, "clusters of taste in the synthetic catalog", ge=1)
    synthetic_taste: float = setting(6.0, "logits between the taste's best items and a random one; 0: popularity alone decides", ge=0)
    synthetic_popularity: float = setting(0.6, "exponent of the power law of item popularity", ge=0)
    synthetic_noise: float = setting(1.0, "noise in the informative modalities, in standard deviations of their signal", ge=0)
    synthetic_missing: float = setting(0.03, "share of items that lack a modality's row, per modality", ge=0, lt=1)

    def __post_init__(self) -> None:
        check_bounds(self, "source")
        source = source_of(self.format)
        if source.needs_path and not self.path:
            raise InputError(f"source.path is not set: source.format={self.format} needs the folder of the raw catalog")
        if self.train_ratio + self.validation_ratio > 1 + 1e-9:
            raise InputError(
                f"source.train_ratio={self.train_ratio} and source.validation_ratio={self.validation_ratio} "
                "add up to more than 1; lower one of them"
            )
        if self.synthetic_dims is not None and any(dim < 1 for dim in self.synthetic_dims.values()):
            raise InputError(f"source.synthetic_dims={self.synthetic_dims}: every dimension must be at least 1")
        if source.own_modalities and self.modalities:
            raise InputError(f"source.modalities: the {self.format} catalog brings its own; leave it out, or set it to {{}} for none")
        if not source.has_times and self.split == "time":
            raise InputError(f"source.split=time: the {self.format} catalog has no times; set source.split=random")


@dataclass(frozen=True)
class GraphConfig:
    """How the train graph is cut into parts."""

    num_parts: int = setting(1, "parts of the graph, one graph server each", ge=1)
    method: str = setting(
        "metis",
        "how nodes are assigned to parts: metis cuts few edges, hash spreads, range keeps the source's order; all balance",
        choices=("metis", "hash", "range"),
    )
    metis_edges: int = setting(
        4_000_000, "size of the graph that METIS cuts: with more train edges or nodes it cuts a coarser one, of clusters", ge=1000
    )
    features: str = setting(
        "stored",
        "how feature rows are kept: stored, as the dataset has them, or int8 with a float32 scale for each row (error at most scale / 2)",
        choices=("stored", "int8"),
    )

    def __post_init__(self) -> None:
        check_bounds(self, "graph")
