"""The counts that memory and traffic depend on, and the memory of one process."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from ...core.config.vectors import VectorsConfig
from ...graph_store.dataset import Dataset, ModalityInfo
from ..runs.compatibility import has_teacher
from ..runs.imported_vectors import vector_files
from ..settings import Settings
from .units import FLOAT, HALF, INDEX, MIB

# What a process has before it holds anything of a catalog, measured on Linux with the versions of constraints.txt.
BASE = {
    "driver": 430 * MIB,
    "Ray": 1350 * MIB,  # its daemons, agents and idle processes on one machine, Ray Train's controller, the servers' supervisor
    "graph server": 410 * MIB,  # DGL's process and the actor that owns it
    "worker": 400 * MIB,  # Ray, torch, DGL's client, DeepSpeed
    "labeler": 240 * MIB,
    "evaluator": 400 * MIB,  # a worker that has trained, or a task of its own, which needs less
}
SCORE_BYTES = 64 * MIB  # a block of scores with its sorts, and the metrics' own arrays
# Temporaries over all interactions while an epoch's order is computed, and while the graph is built: int64 arrays that live at once.
ORDER_ARRAYS, LOADING_ARRAYS = 12, 12
VISITED_ARRAYS = {"interactions": 0, "histories": ORDER_ARRAYS, "users": 1}  # int64 over users, by what an epoch visits
BLOCKS_IN_HAND = 2  # one that is trained on, one that is being made


@dataclass(frozen=True)
class Need:
    """Memory of one process, in bytes.

    Attributes:
        role: The process, in words.
        base: Memory of its libraries.
        parts: What it holds at its largest moment, anonymous and shared pages, by purpose.
        moment: Name of that moment.
        mapped: Pages of memory-mapped files that it reads again and again.
        bound: The most that it takes in all, where `parts` are expectations.
        setting: Settings that change it, in words.
    """

    role: str
    base: int
    parts: dict[str, int]
    moment: str
    mapped: int
    bound: int
    setting: str

    @property
    def total(self) -> int:
        """What it takes in all, expected."""
        return self.base + sum(self.parts.values())

    @staticmethod
    def of(role: str, kind: str, moments: Mapping[str, Mapping[str, float]], setting: str, mapped: float = 0) -> "Need":
        """Makes a need from the parts at several moments, of which the largest counts.

        Args:
            role: The process, in words.
            kind: Key of `BASE`.
            moments: Bytes by purpose, by moment.
            setting: Settings that change it, in words.
            mapped: Bytes of memory-mapped files.
        """
        moment, parts = max(moments.items(), key=lambda entry: sum(entry[1].values()))
        whole = {name: int(size) for name, size in parts.items() if int(size)}
        return Need(role, BASE[kind], whole, moment, int(mapped), BASE[kind] + sum(whole.values()), setting)


@dataclass(frozen=True)
class Sizes:
    """Counts that memory and traffic depend on, as the run's teacher sees the catalog.

    Attributes:
        users, items, edges: Of the train graph.
        dims: d_m by modality; none where the teacher has no vectors by modality, and labels so carry no scores by modality.
        read: d_m by modality that the teacher reads; the same for most kinds.
        stored: Bytes of a raw feature row over these modalities, as graph/ keeps it.
        held_out: Validation interactions.
        taught: Whether the student learns from a teacher.
        imported: Columns of vectors by name, by the settings that name their files, of what the teacher reads from files.
        features: d_m of all modalities of the dataset, whatever the teacher reads.
        feature_bytes: Bytes of an item's rows of all of them, as dataset/ keeps these.
    """

    users: int
    items: int
    edges: int
    dims: dict[str, int]
    read: dict[str, int]
    stored: int
    held_out: int
    taught: bool
    imported: dict[VectorsConfig, dict[str, int]] = field(default_factory=dict)
    features: dict[str, int] = field(default_factory=dict)
    feature_bytes: int = 0

    @staticmethod
    def of(settings: Settings, dataset: Dataset) -> "Sizes":
        """Counts of a dataset, for a run with these settings.

        Raises:
            InputError: a file of vectors that the teacher reads is missing or of another form.
        """
        counts = dataset.manifest["num_interactions"]
        infos = dataset.modalities if settings.teacher.reads_features else {}
        of_int8 = sum(info.dim + FLOAT for info in infos.values())  # and a scale
        read = {modality: info.dim for modality, info in infos.items()}
        files = vector_files(settings.teacher)
        imported = {config: of.dims for config, of in files.items()}
        modal = read if settings.teacher.has_modality_vectors else {}
        dims = modal or {modality: dim for of in files.values() for modality, dim in of.modal_dims.items()}
        features = {modality: info.dim for modality, info in dataset.modalities.items()}
        return Sizes(
            users=dataset.num_users,
            items=dataset.num_items,
            edges=counts["train"],
            dims=dims,
            read=read,
            stored=of_int8 if settings.graph.features == "int8" else _bytes_of_row(infos),
            held_out=counts["validation"],
            taught=has_teacher(settings, dataset),
            imported=imported,
            features=features,
            feature_bytes=_bytes_of_row(dataset.modalities),
        )

    @property
    def nodes(self) -> int:
        """Users and items together."""
        return self.users + self.items

    @property
    def width(self) -> int:
        """Columns of all modalities together, Σ d_m."""
        return sum(self.dims.values())

    @property
    def largest(self) -> int:
        """Columns of the widest modality."""
        return max(self.dims.values(), default=0)

    @property
    def graph(self) -> int:
        """Bytes of the train graph, as a `BipartiteGraph` holds it."""
        return 2 * self.edges * (INDEX + FLOAT) + self.nodes * INDEX


def _bytes_of_row(infos: Mapping[str, ModalityInfo]) -> int:
    """Bytes of an item's rows of some modalities in the types of dataset/."""
    return sum(info.dim * (HALF if info.dtype == "float16" else FLOAT) for info in infos.values())
