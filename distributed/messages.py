"""What the driver sends to workers: jobs, as frozen data classes that travel between processes.

A job says what to do and with which settings. How a worker reaches the graph, the labels and the person who started the run is not part of
it: that is the executor's, `execution/around.py`.
"""

from dataclasses import dataclass, field, replace

from ..core.config import DistillationConfig, EvaluationConfig, OptimizerConfig, SamplingConfig, StudentConfig, TeacherConfig
from ..core.objectives import candidate_identity, candidate_policy
from ..core.sampling import rank_slice
from ..core.storage import join
from .config import ClusterConfig, LabelConfig


@dataclass(frozen=True)
class Job:
    """What every training job has.

    Example:
        TeacherJob("runs/demo", EvaluationConfig(), ClusterConfig(), SamplingConfig(), 0, config=TeacherConfig())

    Attributes:
        run_url: The run's folder.
        evaluation: Metrics, and the one that chooses the epoch.
        cluster: Workers, threads, ZeRO.
        sampling: Neighbour blocks of the sampled engine.
        seed: Seed of everything random.
        lineage: Checksums of what the result is made from, for its manifest.
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
        """Returns the engine that trains: "sampled" where that was chosen, else "full"."""
        return "sampled" if self.cluster.engine == "sampled" else "full"

    @property
    def stage(self) -> str:
        """Returns the stage that it trains: "teacher" or "student"."""
        raise NotImplementedError

    @property
    def train(self) -> OptimizerConfig:
        """Epochs, batches and the learning rate of the stage."""
        raise NotImplementedError

    @property
    def teacher_url(self) -> str:
        """Returns the run's teacher artifact."""
        return join(self.run_url, "teacher")


@dataclass(frozen=True)
class TeacherJob(Job):
    """Train the teacher and write it.

    Attributes:
        config: The teacher's settings.
    """

    config: TeacherConfig = field(kw_only=True)

    @property
    def stage(self) -> str:
        return "teacher"

    @property
    def train(self) -> OptimizerConfig:
        return self.config.train


@dataclass(frozen=True)
class StudentJob(Job):
    """Train a round of the student, and write it at the last one.

    Attributes:
        config: The student's settings.
        distill: What it learns from the teacher; `use_teacher` is False where the run has none.
        labels: How labels come.
        num_examples: Train interactions.
        revision: The prompt's revision that this round's labels carry.
        stop_epoch: The epoch before which this round ends.
        is_last: Whether the student is written at the end.
    """

    config: StudentConfig = field(kw_only=True)
    distill: DistillationConfig = field(kw_only=True)
    labels: LabelConfig = field(kw_only=True)
    num_examples: int = field(kw_only=True)
    revision: int = field(default=0, kw_only=True)
    stop_epoch: int = field(kw_only=True)
    is_last: bool = field(default=True, kw_only=True)

    @property
    def stage(self) -> str:
        return "student"

    @property
    def train(self) -> OptimizerConfig:
        return self.config.train

    def label_job(self, rank: int = 0, world_size: int = 1) -> "LabelJob":
        """Returns the labels of this job: of whole steps, or of one worker's share of each."""
        batch = self.train.batch_size
        return LabelJob(
            join(self.run_url, "dataset"), self.teacher_url, self.revision, self.distill, batch, max(1, self.labels.block_rows // batch),
            self.num_examples, self.seed, self.cluster.cache_dir, rank, world_size,
        )  # fmt: skip


@dataclass(frozen=True)
class TuneJob:
    """Tune the prompt against the student as its newest checkpoint has it, and write the next revision (docs/method.md 4).

    Attributes:
        student: The round's job.
    """

    student: StudentJob


@dataclass(frozen=True)
class LabelJob:
    """Label candidate lists with the teacher at one revision of its prompt.

    Attributes:
        dataset_url, teacher_url: Artifacts.
        revision: The prompt's revision.
        config: Candidates and list lengths.
        batch_size: The students' global batch.
        steps_a_block: Steps in a block.
        num_examples: Train interactions.
        seed: Seed of order and candidates.
        cache_dir: Folder for local copies of remote artifacts.
        rank, world_size: The student worker whose share of each step is labelled; (0, 1) labels whole steps.
        threads: torch threads of the labeler.
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

    def candidates(self) -> dict[str, object]:
        """Returns what decides the candidate lists, for the manifest of materialised labels."""
        return candidate_identity(self.config, self.seed)

    @property
    def width(self) -> int:
        """Items of a list, the positive included."""
        return 1 + candidate_policy(self.config).num_candidates

    @property
    def num_steps(self) -> int:
        """Steps of an epoch."""
        return -(-self.num_examples // self.batch_size)

    @property
    def num_blocks(self) -> int:
        """Blocks of an epoch."""
        return -(-self.num_steps // self.steps_a_block)

    def steps_of(self, block: int) -> range:
        """Returns the steps of a block."""
        return range(block * self.steps_a_block, min((block + 1) * self.steps_a_block, self.num_steps))

    def share_of(self, step: int) -> slice:
        """Returns the share of a step that is labelled, as positions of the epoch's order."""
        first = step * self.batch_size
        mine = rank_slice(min(self.batch_size, self.num_examples - first), self.rank, self.world_size)
        return slice(first + mine.start, first + mine.stop)

    def step_sizes(self, block: int) -> list[int]:
        """Labelled rows of every step of a block."""
        shares = [self.share_of(step) for step in self.steps_of(block)]
        return [share.stop - share.start for share in shares]

    def of_whole_steps(self, steps_a_block: int) -> "LabelJob":
        """Returns the same for whole steps, in blocks of so many."""
        return replace(self, rank=0, world_size=1, steps_a_block=steps_a_block)
