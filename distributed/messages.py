"""Defines the jobs that the driver sends to workers, as frozen data classes that travel between processes.

A job says what to do and with which settings. It does not say how a worker reaches the graph, the labels and the person who started the
run: the executor gives the worker these as `Surroundings` (`distributed/surroundings.py`).
"""

from collections.abc import Iterator
from dataclasses import dataclass, field

import torch
from torch import Tensor

from ..core.config import DistillationConfig, EvaluationConfig, OptimizerConfig, SamplingConfig, StudentConfig, TeacherConfig
from ..core.objectives import candidate_identity, candidate_policy
from ..core.sampling import rank_slice
from ..core.storage import join
from ..core.teacher import teacher_kind
from .config import ClusterConfig, LabelConfig

EXAMPLES_A_RUN = 1 << 14  # that a student reads together: one step's are too few for what each range of the rankings takes


def teacher_reads_graph(engine: str, config: TeacherConfig) -> bool:
    """Whether training a teacher reads more from graph/ than the train interactions: features, or the sharded structure."""
    return config.reads_features or (engine == "sampled" and not teacher_kind(config).is_imported)


def student_reads_graph(engine: str, config: DistillationConfig) -> bool:
    """Whether training a student does: with neighbour blocks, or beside a resident teacher, which reads features."""
    return engine == "sampled" or config.has_resident_teacher


@dataclass(frozen=True)
class Job:
    """Holds what every training job has.

    Example:
        TeacherJob("runs/demo", EvaluationConfig(), ClusterConfig(), SamplingConfig(), 0, config=TeacherConfig())

    Attributes:
        run_url: The run's folder.
        evaluation: Settings of evaluation, with the metric that chooses the epoch.
        cluster: Settings of the workers.
        sampling: Settings of the sampled engine's neighbour blocks.
        seed: Seed of all random draws, `run.seed`.
        lineage: Checksums of what the result is made from, for its manifest: of artifacts by their names, of other files by URL.
        trackers: Names of the trackers that get every epoch's numbers.
    """

    run_url: str
    evaluation: EvaluationConfig
    cluster: ClusterConfig
    sampling: SamplingConfig
    seed: int
    lineage: dict[str, str] = field(default_factory=dict, kw_only=True)
    trackers: tuple[str, ...] = field(default=(), kw_only=True)

    @property
    def engine(self) -> str:
        """Returns the engine that trains: "sampled" where `cluster.engine` is that, else "full"."""
        return "sampled" if self.cluster.engine == "sampled" else "full"

    @property
    def reads_graph(self) -> bool:
        """Whether it reads more from graph/ than the train interactions, which the dataset has too: features, or the sharded structure."""
        raise NotImplementedError

    @property
    def stage(self) -> str:
        """Returns the stage that the job trains: "teacher" or "student"."""
        raise NotImplementedError

    @property
    def train(self) -> OptimizerConfig:
        """Returns the stage's settings of epochs, batches and learning rate."""
        raise NotImplementedError

    @property
    def teacher_url(self) -> str:
        """Returns the URL of the run's teacher artifact."""
        return join(self.run_url, "teacher")


@dataclass(frozen=True)
class TeacherJob(Job):
    """Asks workers to train the teacher and to write it.

    Attributes:
        config: The teacher's settings.
        ends_early: Whether training is meant to end before it has converged: a component that shows another one its temperature.
    """

    config: TeacherConfig = field(kw_only=True)
    ends_early: bool = field(default=False, kw_only=True)

    @property
    def reads_graph(self) -> bool:
        return teacher_reads_graph(self.engine, self.config)

    @property
    def stage(self) -> str:
        return "teacher"

    @property
    def train(self) -> OptimizerConfig:
        return self.config.train

    @property
    def num_epochs(self) -> int:
        """Returns the largest number of epochs: none for a teacher that takes no steps."""
        return self.train.epochs if teacher_kind(self.config).takes_steps() else 0


@dataclass(frozen=True)
class StudentJob(Job):
    """Asks workers to train the student for one round of labels, and to write the student after the last round.

    Attributes:
        config: The student's settings.
        distill: Settings of distillation; `use_teacher` is False where the run has no teacher.
        labels: Settings of how labels reach the student.
        num_examples: The number of train interactions.
        revision: The prompt's revision that this round's labels carry.
        stop_epoch: The epoch, counted from 0, before which this round ends.
        is_last: Whether this round is the last one, after which the student is written.
    """

    config: StudentConfig = field(kw_only=True)
    distill: DistillationConfig = field(kw_only=True)
    labels: LabelConfig = field(kw_only=True)
    num_examples: int = field(kw_only=True)
    revision: int = field(default=0, kw_only=True)
    stop_epoch: int = field(kw_only=True)
    is_last: bool = field(default=True, kw_only=True)

    @property
    def labels_run_url(self) -> str:
        """Returns the folder of the run whose teacher and labels the student learns from."""
        return self.labels.run or self.run_url

    @property
    def teacher_url(self) -> str:
        return join(self.labels_run_url, "teacher")

    @property
    def reads_graph(self) -> bool:
        return student_reads_graph(self.engine, self.distill)

    @property
    def stage(self) -> str:
        return "student"

    @property
    def train(self) -> OptimizerConfig:
        return self.config.train

    def label_job(self, rank: int = 0, world_size: int = 1) -> "LabelJob":
        """Returns the job that makes this job's labels: those of whole steps by default, or those of one worker's share of each step."""
        batch = self.train.batch_size
        return LabelJob(
            join(self.run_url, "dataset"), self.teacher_url, self.revision, self.distill, batch, max(1, self.labels.block_rows // batch),
            self.num_examples, self.seed if self.labels.seed is None else self.labels.seed, self.cluster.cache_dir, rank, world_size,
            examples=self.config.examples, scores=self.labels.scores, compression=self.labels.compression, by=self.labels.by,
            pool=self.labels.pool, draw_seed=self.seed, device="cuda" if self.cluster.gpus_per_labeler else "cpu",
        )  # fmt: skip


@dataclass(frozen=True)
class TuneJob:
    """Asks workers to tune the prompt against the student of the newest checkpoint, and to write the next revision (docs/method.md 4).

    Attributes:
        student: The job of the round that has just ended.
    """

    student: StudentJob

    @property
    def reads_graph(self) -> bool:
        """Whether it reads more from graph/ than the train interactions: it does, the features of the teacher."""
        return True


@dataclass(frozen=True)
class LabelJob:
    """Asks a labeler to label candidate lists with the teacher at one revision of its prompt.

    Attributes:
        dataset_url, teacher_url: URLs of the artifacts.
        revision: The prompt's revision.
        config: Settings of distillation, which decide the candidate lists.
        batch_size: The student's global batch size.
        steps_a_block: The number of steps in a block.
        num_examples: The number of train interactions.
        seed: Seed of what labels hold: the examples' order and the candidates, or with labels by user the pools.
        cache_dir: Folder for local copies of remote artifacts.
        rank, world_size: The student's worker whose share of each step is labelled, and the number of workers; (0, 1) labels whole steps.
        threads: torch threads of the labeler.
        examples: What an epoch visits, as in `student.examples`.
        scores, compression: How scores are kept, and how blocks are compressed that are written, as in `labels`.
        by, pool: Whether labels are kept by example or by user, and the size of a user's pool, as in `labels`.
        draw_seed: Seed of what a student draws from labels by user.
        device: Where the teacher scores: "cpu" or "cuda".
    """

    dataset_url: str
    teacher_url: str
    revision: int
    config: DistillationConfig
    batch_size: int
    steps_a_block: int
    num_examples: int
    seed: int
    cache_dir: str | None = None
    rank: int = 0
    world_size: int = 1
    threads: int = 1
    examples: str = "interactions"
    scores: str = "float16"
    compression: str = "none"
    by: str = "examples"
    pool: int = 0
    draw_seed: int = 0
    device: str = "cpu"

    @property
    def rankings(self) -> "RankingJob | None":
        """Returns the job that makes the rankings which candidates are drawn from; None where none are."""
        depth = candidate_policy(self.config).depth
        return RankingJob(self.dataset_url, self.teacher_url, self.revision, depth, self.cache_dir, self.device) if depth else None

    def candidates(self) -> dict[str, object]:
        """Returns all that decides the candidate lists, or with labels by user what they are drawn from, for the labels' manifest."""
        if self.by == "users":
            return {"pool": self.pool, "top_depth": candidate_policy(self.config).depth, "seed": self.seed}
        return {**candidate_identity(self.config, self.seed), "examples": self.examples}

    @property
    def width(self) -> int:
        """Returns 1 + K, the number of items in a list with the positive."""
        return 1 + candidate_policy(self.config).num_candidates

    @property
    def num_steps(self) -> int:
        """Returns the number of steps in an epoch."""
        return -(-self.num_examples // self.batch_size)

    @property
    def num_blocks(self) -> int:
        """Returns the number of blocks in an epoch."""
        return -(-self.num_steps // self.steps_a_block)

    def steps_of(self, block: int) -> range:
        """Returns the steps of a block."""
        return range(block * self.steps_a_block, min((block + 1) * self.steps_a_block, self.num_steps))

    def share_of(self, step: int) -> slice:
        """Returns the share of a step that is labelled, as positions in the epoch's order."""
        first = step * self.batch_size
        share = rank_slice(min(self.batch_size, self.num_examples - first), self.rank, self.world_size)
        return slice(first + share.start, first + share.stop)

    def places_of(self, steps: range) -> Tensor:
        """Returns the shares of some steps that are labelled, one after the other, as positions in the epoch's order, int64."""
        shares = [self.share_of(step) for step in steps]
        return torch.cat([torch.arange(share.start, share.stop) for share in shares])

    def step_sizes(self, block: int) -> list[int]:
        """Returns the number of labelled examples in every step of a block."""
        return self.sizes_of(self.steps_of(block))

    def sizes_of(self, steps: range) -> list[int]:
        """Returns the number of labelled examples in each of some steps."""
        shares = [self.share_of(step) for step in steps]
        return [share.stop - share.start for share in shares]

    def runs_of(self, steps: range) -> Iterator[range]:
        """Cuts steps that follow one another into runs that a student reads together, `EXAMPLES_A_RUN` of its examples or a step."""
        size = max(1, EXAMPLES_A_RUN * self.world_size // self.batch_size)
        for first in range(steps.start, steps.stop, size):
            yield range(first, min(first + size, steps.stop))


@dataclass(frozen=True)
class RankingJob:
    """Asks for the teacher's best unseen items of every user at one revision of its prompt.

    Attributes:
        dataset_url, teacher_url: URLs of the artifacts.
        revision: The prompt's revision.
        depth: The number of items of a user.
        cache_dir: Folder for local copies of remote artifacts.
        device: Where the teacher scores: "cpu" or "cuda".
    """

    dataset_url: str
    teacher_url: str
    revision: int
    depth: int
    cache_dir: str | None = None
    device: str = "cpu"


@dataclass(frozen=True)
class StoredScores:
    """Names the final scores of a run's teacher or student; `artifacts/stored_scores.py` opens them in the process that needs them.

    Attributes:
        run_url: The run's folder.
        model: "teacher", at revision 0 of its prompt, or "student".
        changed: Items, int64 [n], and the vectors that they have in place of the stored ones, float32 [n, d]; None: none are changed.
    """

    run_url: str
    model: str
    changed: tuple[Tensor, Tensor] | None = None


@dataclass(frozen=True)
class EvaluationJob:
    """Asks for the ranking metrics of a trained model.

    Attributes:
        dataset_url: URL of the artifact.
        scores: The model's final scores.
        split: "validation" or "test".
        config: Cutoffs and metrics.
        threads: torch threads of each process that ranks.
        cache_dir: Folder for local copies of remote artifacts.
    """

    dataset_url: str
    scores: StoredScores
    split: str
    config: EvaluationConfig
    threads: int
    cache_dir: str | None = None
