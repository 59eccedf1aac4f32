"""Stage 1: trains the teacher on Ray Train workers, and writes the teacher artifact (revision 0 of the prompt)."""

import time
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from ..core.config import EvaluationConfig, SamplingConfig, TeacherConfig, as_dict
from ..core.sampling import UnseenItems, epoch_order, rank_slice
from ..core.storage import join
from ..core.teacher import IdTables, TeacherVectors, build_reduction, teacher_loss
from ..graph_store.dataset import Dataset, open_dataset
from .checkpoints import adam_state, load_adam_state, take_prefix, with_prefix
from .config import ClusterConfig
from .deepspeed_engine import ReductionEngine
from .progress import Recorder, Selection
from .resident import ResidentTeacher, load_resident
from .teacher_artifact import write_revision, write_weights
from .training import ReplicatedTrainer, Stage, Totals, Validation, total_of
from .worker import Worker


@dataclass(frozen=True)
class TeacherJob:
    """What the driver sends to every worker.

    Attributes:
        run_url: The run's folder.
        config, evaluation, cluster: Settings.
        seed: Seed of everything random.
        service: The `GraphService` actor.
        lines: The `ProgressLines` actor.
        lineage: Checksums of what the teacher is made from.
        sampling: Neighbour blocks of the sampled engine; None for the full one.
    """

    run_url: str
    config: TeacherConfig
    evaluation: EvaluationConfig
    cluster: ClusterConfig
    seed: int
    service: Any
    lines: Any
    lineage: dict = field(default_factory=dict)
    sampling: SamplingConfig | None = None


def train_teacher_loop(arguments: dict) -> None:
    """The loop of one Ray Train worker."""
    job: TeacherJob = arguments["job"]
    worker = Worker.current(job.cluster.use_gpu, job.cluster.worker_threads)
    if job.sampling is not None:
        from .sampled_training import run_sampled_teacher

        run_sampled_teacher(job, worker)
    else:
        dataset = open_dataset(join(job.run_url, "dataset"), job.cluster.cache_dir)
        run_teacher(job, worker, load_resident(worker, job.service, job.config), dataset)


def run_teacher(job: TeacherJob, worker: Worker, resident: ResidentTeacher, dataset: Dataset) -> None:
    """Trains with validation and checkpoints, then infers exactly and writes the artifact."""
    trainer = trainer_of(job, worker, resident, Validation.of(dataset, resident.graph.users, job.evaluation, worker))
    stage = teacher_stage(job, dataset)
    stage.train(trainer, job.config.train.epochs)
    trainer.load_weights(trainer.best)
    vectors = trainer.vectors()
    if worker.is_first:
        trainer.write(vectors, stage.selection)
        stage.recorder.say(f"best epoch {stage.selection.best_epoch}; vectors of {len(resident.position):,} items written")
        stage.recorder.close()
    worker.barrier()


def trainer_of(job: TeacherJob, worker: Worker, resident: ResidentTeacher, validation: Validation | None = None) -> "WholeGraphTrainer":
    """The trainer of the teacher named by `job.config.kind`."""
    from .baseline_training import BaselineTrainer

    kind = BaselineTrainer if job.config.is_baseline else TeacherTrainer
    return kind(job, worker, resident, validation)


def teacher_stage(job: TeacherJob, dataset: Dataset) -> Stage:
    """The stage's recorder, selection and checkpoints."""
    select_by = job.evaluation.select_by if dataset.has_split("validation") else None
    return Stage("teacher", job.run_url, job.config.train, select_by, job.lines, job.cluster.cache_dir)


@dataclass
class WholeGraphTrainer(ReplicatedTrainer):
    """The epochs of a teacher that every worker has whole; a subclass has the model, its steps and its part of the artifact."""

    job: TeacherJob
    worker: Worker
    resident: ResidentTeacher
    validation: Validation | None = None

    def __post_init__(self) -> None:
        graph = self.resident.graph
        self.unseen = UnseenItems(graph.users)
        self.train_users, self.train_items = graph.users.rows, graph.users.columns

    @property
    def num_steps(self) -> int:
        """Steps of an epoch."""
        return -(-self.train_users.numel() // self.job.config.train.batch_size)

    def open(self, epochs: range) -> None:
        """Nothing to prepare: batches are drawn as they are needed."""

    def close(self) -> None:
        """Nothing to end."""

    @torch.no_grad()
    def validate(self) -> dict[str, float] | None:
        """Validation metrics, None without the split."""
        if self.validation is None:
            return None
        vectors = self.vectors()
        return self.validation(vectors.user, vectors.item)

    def train_epoch(self, epoch: int, recorder: Recorder | None) -> dict[str, float]:
        """One pass over the train interactions; returns the mean of every loss term."""
        config, seed = self.job.config, self.job.seed
        self.set_learning_rates(config.train.lr_decay**epoch)
        order = epoch_order(self.train_users.numel(), seed, epoch).to(self.worker.device)
        totals, started = Totals(self.worker), time.monotonic()
        for step in range(self.num_steps):
            batch = order[step * config.train.batch_size : (step + 1) * config.train.batch_size]
            mine = batch[rank_slice(batch.numel(), self.worker.rank, self.worker.world_size)]
            terms = self.train_step(epoch, step, mine, batch.numel())
            totals.add(terms, batch.numel() / order.numel(), f"teacher epoch {epoch}, step {step}")
            if recorder is not None:
                recorder.say_within_epoch(epoch, step + 1, self.num_steps, started)
        return totals.row(epoch)

    def set_learning_rates(self, decay: float) -> None:
        """Sets every optimizer's step size to `decay` times its setting."""
        raise NotImplementedError

    def train_step(self, epoch: int, step: int, examples: Tensor, num_examples: int) -> dict[str, Tensor]:
        """Forward, backward and the optimizers on this worker's share of a global batch.

        Args:
            examples: int64 [n], global example indices of this worker.
            num_examples: Size of the global batch.
        """
        raise NotImplementedError

    def vectors(self) -> TeacherVectors:
        """Exact inference: every layer over the whole graph, without dropout."""
        raise NotImplementedError

    def load_weights(self, weights: dict[str, Tensor]) -> None:
        """Restores `weights()`; the optimizers' state stays."""
        raise NotImplementedError

    def write(self, vectors: TeacherVectors, selection: Selection) -> None:
        """Writes the teacher artifact and revision 0 of its vectors."""
        raise NotImplementedError

    def facts(self, selection: Selection, num_parameters: int) -> dict:
        """What the teacher's manifest says of its training."""
        return {
            "best_epoch": selection.best_epoch,
            "selected_by": selection.metric,
            "num_parameters": num_parameters,
            "lineage": self.job.lineage,
            "seed": self.job.seed,
        }


class TeacherTrainer(WholeGraphTrainer):
    """The teacher's weights with their optimizers: ID tables replicated under Adam, reduction layers and prompt in the DeepSpeed engine."""

    def __post_init__(self) -> None:
        super().__post_init__()
        config, graph, device = self.job.config, self.resident.graph, self.worker.device
        self.ids = IdTables(graph.num_users, graph.num_items, config.dim, config.init_scale, self.job.seed).to(device)
        self.optimizer = torch.optim.Adam(self.ids.parameters(), lr=config.train.learning_rate)
        dims = {m: x.shape[1] for m, x in self.resident.features.items()}
        reduction = build_reduction(dims, config, self.job.seed, self.job.cluster.checkpoint_activations).to(device)
        reduction.prompt.requires_grad_(config.prompt)
        self.engine = ReductionEngine(
            reduction,
            config.reduction_learning_rate,
            config.tower_dtype,
            self.job.cluster,
            self.worker,
            self.resident.reduction_inputs(None),
        )

    def set_learning_rates(self, decay: float) -> None:
        self.optimizer.param_groups[0]["lr"] = self.job.config.train.learning_rate * decay
        self.engine.learning_rate = self.job.config.reduction_learning_rate * decay

    def train_step(self, epoch: int, step: int, examples: Tensor, num_examples: int) -> dict[str, Tensor]:
        """Both optimizers step."""
        config, seed = self.job.config, self.job.seed
        users, positives = self.train_users[examples], self.train_items[examples]
        negatives = self.unseen.draw(users, examples, 1, seed, epoch)[:, 0]
        keys, weights = (seed, epoch * self.num_steps + step), self.resident.user_weights
        vectors = self.resident.vectors(self.engine, self.ids.user, self.ids.item, keys, final=False)
        terms = teacher_loss(
            vectors,
            self.ids.user,
            self.ids.item,
            users,
            positives,
            negatives,
            num_examples / self.worker.world_size,
            config,
            weights=weights(users) if weights else None,
            entries=self.resident.graph.entries(users, positives) if config.leave_one_out else None,
        )
        self.optimizer.zero_grad(set_to_none=True)
        self.engine.backward(total_of(terms))
        self.worker.average_gradients(self.ids)
        self.engine.step()
        self.optimizer.step()
        return terms

    @torch.no_grad()
    def vectors(self) -> TeacherVectors:
        return self.resident.vectors(self.engine, self.ids.user, self.ids.item)

    def weights(self) -> dict[str, Tensor]:
        """Copies of all weights, on the CPU."""
        tables = {name: p.detach().cpu().clone() for name, p in self.ids.named_parameters()}
        return {**with_prefix("ids.", tables), **with_prefix("reduction.", self.engine.weights())}

    def load_weights(self, weights: dict[str, Tensor]) -> None:
        self.ids.load_state_dict(take_prefix("ids.", weights))
        self.engine.load_weights(take_prefix("reduction.", weights))

    def state(self) -> dict[str, Tensor]:
        """Weights and optimizer state, for a checkpoint."""
        return {**adam_state(self.optimizer, self.ids, "ids."), **with_prefix("reduction.", self.engine.state())}

    def load_state(self, tensors: dict[str, Tensor]) -> None:
        """Restores `state()`, written at any world size and ZeRO stage."""
        load_adam_state(self.optimizer, self.ids, "ids.", tensors)
        self.engine.load(take_prefix("reduction.", tensors))

    def write(self, vectors: TeacherVectors, selection: Selection) -> None:
        best, url = self.best, join(self.job.run_url, "teacher")
        standard = self.resident.standardisation_tensors()
        dims = {m: x.shape[1] for m, x in self.resident.features.items()}
        num_trained = sum(t.numel() for name, t in best.items() if self.job.config.prompt or ".prompt." not in name)
        write_weights(url, {**best, **standard}, dims, self.job.config, self.facts(selection, num_trained))
        prompt = take_prefix("reduction.prompt.", best)
        write_revision(url, 0, vectors, prompt, {"lineage": self.job.lineage, "config": as_dict(self.job.config)})
