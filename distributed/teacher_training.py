"""Stage 1: trains the teacher on Ray Train workers, and writes the teacher artifact (revision 0 of the prompt)."""

import time
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from ..core.config import EvaluationConfig, TeacherConfig, as_dict
from ..core.graph import Csr
from ..core.ranking import evaluate
from ..core.sampling import UnseenItems, epoch_order, rank_slice
from ..core.storage import join
from ..core.teacher import IdTables, TeacherVectors, build_reduction, teacher_loss
from ..graph_store.dataset import Dataset, open_dataset
from .checkpoints import Checkpoints, adam_state, load_adam_state, take_prefix, with_prefix
from .config import ClusterConfig
from .deepspeed_engine import ReductionEngine
from .progress import Recorder, Selection
from .resident import ResidentTeacher, load_resident
from .teacher_artifact import write_revision, write_weights
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
    """

    run_url: str
    config: TeacherConfig
    evaluation: EvaluationConfig
    cluster: ClusterConfig
    seed: int
    service: Any
    lines: Any
    lineage: dict = field(default_factory=dict)


@dataclass(frozen=True)
class Validation:
    """Validation of full vectors, sharded over the workers."""

    worker: Worker
    held_out: Csr
    train: Csr
    config: EvaluationConfig

    @staticmethod
    def of(dataset: Dataset, train: Csr, config: EvaluationConfig, worker: Worker) -> "Validation | None":
        """None where the dataset has no validation split."""
        if not dataset.has_split("validation"):
            return None
        return Validation(worker, dataset.csr("validation").to(worker.device), train, config)

    def __call__(self, users: Tensor, items: Tensor) -> dict[str, float]:
        worker = self.worker
        return evaluate(
            users,
            items,
            self.held_out,
            self.train,
            self.config.cutoffs,
            self.config.memory_mib,
            worker.rank,
            worker.world_size,
            worker.sum_,
        )


def stage_url(run_url: str, stage: str) -> str:
    """Folder of a training stage: metrics, events, checkpoints."""
    return join(run_url, "training", stage)


def train_teacher_loop(arguments: dict) -> None:
    """The loop of one Ray Train worker."""
    job: TeacherJob = arguments["job"]
    worker = Worker.current(job.cluster.use_gpu, job.cluster.worker_threads)
    run_teacher(job, worker, load_resident(worker, job.service, job.config))


def run_teacher(job: TeacherJob, worker: Worker, resident: ResidentTeacher) -> None:
    """Resumes, trains with validation and checkpoints, then infers exactly and writes the artifact."""
    optimizer_config = job.config.train
    dataset = open_dataset(join(job.run_url, "dataset"), job.cluster.cache_dir)
    trainer = TeacherTrainer(job, worker, resident)
    validate = Validation.of(dataset, resident.graph.users, job.evaluation, worker)
    recorder = Recorder(stage_url(job.run_url, "teacher"), "teacher", job.lines)
    selection = Selection(job.evaluation.select_by if validate else None, optimizer_config.patience)
    checkpoints = Checkpoints(join(recorder.url, "checkpoints"), job.cluster.cache_dir)
    best, first_epoch = resume(checkpoints, trainer, recorder, selection, worker)

    for epoch in range(first_epoch, optimizer_config.epochs):
        if selection.should_stop:
            break
        started = time.monotonic()
        row = trainer.train_epoch(epoch, recorder if worker.is_first else None)
        row["seconds"] = time.monotonic() - started
        if (epoch + 1) % optimizer_config.evaluate_every == 0 or epoch + 1 == optimizer_config.epochs:
            metrics = None
            if validate is not None:
                with torch.no_grad():
                    vectors = trainer.vectors()
                    metrics = validate(vectors.user, vectors.item)
                row.update({f"validation/{name}": value for name, value in metrics.items()})
            if selection.observe(epoch, metrics):
                best = trainer.weights()
        if worker.is_first:
            report_epoch(recorder, row, selection)
        if (epoch + 1) % optimizer_config.checkpoint_every == 0:
            save(checkpoints, epoch + 1, trainer, best, recorder, selection, worker)

    trainer.load_weights(best)
    vectors = trainer.vectors()
    if worker.is_first:
        trainer.write(best, vectors, selection)
        recorder.say(f"best epoch {selection.best_epoch}; vectors of {len(resident.position):,} items written")
        recorder.close()
    worker.barrier()


@dataclass
class TeacherTrainer:
    """The teacher's weights with their optimizers: ID tables replicated under Adam, reduction layers and prompt in the DeepSpeed engine."""

    job: TeacherJob
    worker: Worker
    resident: ResidentTeacher

    def __post_init__(self) -> None:
        config, graph, device = self.job.config, self.resident.graph, self.worker.device
        self.ids = IdTables(graph.num_users, graph.num_items, config.dim, config.init_scale, self.job.seed).to(device)
        self.optimizer = torch.optim.Adam(self.ids.parameters(), lr=config.train.learning_rate)
        dims = {m: x.shape[1] for m, x in self.resident.features.items()}
        reduction = build_reduction(dims, config, self.job.seed).to(device)
        reduction.prompt.requires_grad_(config.prompt)
        self.engine = ReductionEngine(
            reduction,
            config.reduction_learning_rate,
            self.job.cluster.zero_stage,
            self.worker,
            self.resident.reduction_inputs(None),
        )
        self.unseen = UnseenItems(graph.users)
        self.train_users, self.train_items = graph.users.rows, graph.users.columns

    @property
    def num_steps(self) -> int:
        """Steps of an epoch."""
        return -(-self.train_users.numel() // self.job.config.train.batch_size)

    def train_epoch(self, epoch: int, recorder: Recorder | None) -> dict[str, float]:
        """One pass over the train interactions; returns the mean of every loss term."""
        config, seed = self.job.config, self.job.seed
        decay = config.train.lr_decay**epoch
        self.optimizer.param_groups[0]["lr"] = config.train.learning_rate * decay
        self.engine.learning_rate = config.reduction_learning_rate * decay
        order = epoch_order(self.train_users.numel(), seed, epoch).to(self.worker.device)
        totals: dict[str, Tensor] = {}
        loss_sum, started = 0.0, time.monotonic()
        for step in range(self.num_steps):
            batch = order[step * config.train.batch_size : (step + 1) * config.train.batch_size]
            mine = batch[rank_slice(batch.numel(), self.worker.rank, self.worker.world_size)]
            terms = self.train_step(epoch, step, mine, batch.numel())
            share = batch.numel() / order.numel()
            loss_sum += share * self.worker.check_finite(torch.stack(list(terms.values())).sum(), f"teacher epoch {epoch}, step {step}")
            for name, value in terms.items():
                totals[name] = totals.get(name, 0.0) + share * value.detach().double()
            if recorder is not None:
                recorder.say_within_epoch(epoch, step + 1, self.num_steps, started)
        means = {name: total.clone() for name, total in totals.items()}
        self.worker.sum_(list(means.values()))
        return {
            "epoch": epoch,
            "loss": loss_sum,
            **{f"loss/{k}": float(v) / self.worker.world_size for k, v in means.items()},
        }

    def train_step(self, epoch: int, step: int, examples: Tensor, num_examples: int) -> dict[str, Tensor]:
        """Forward, backward and both optimizers on this worker's share of a global batch.

        Args:
            examples: int64 [n], global example indices of this worker.
            num_examples: Size of the global batch.
        """
        config, seed = self.job.config, self.job.seed
        users, positives = self.train_users[examples], self.train_items[examples]
        negatives = self.unseen.draw(users, examples, 1, seed, epoch)[:, 0]
        keys = (seed, epoch * self.num_steps + step)
        vectors = self.resident.vectors(self.engine, self.ids.user, self.ids.item, keys)
        terms = teacher_loss(
            vectors,
            self.ids.user,
            self.ids.item,
            users,
            positives,
            negatives,
            num_examples / self.worker.world_size,
            config,
        )
        self.optimizer.zero_grad(set_to_none=True)
        self.engine.backward(torch.stack(list(terms.values())).sum())
        self.worker.average_gradients(self.ids)
        self.engine.step()
        self.optimizer.step()
        return terms

    @torch.no_grad()
    def vectors(self) -> TeacherVectors:
        """Exact inference: every layer over the whole graph, without dropout."""
        return self.resident.vectors(self.engine, self.ids.user, self.ids.item)

    def weights(self) -> dict[str, Tensor]:
        """Copies of all weights, on the CPU."""
        tables = {name: p.detach().cpu().clone() for name, p in self.ids.named_parameters()}
        return {**with_prefix("ids.", tables), **with_prefix("reduction.", self.engine.weights())}

    def load_weights(self, weights: dict[str, Tensor]) -> None:
        """Restores `weights()`; the optimizers' state stays."""
        self.ids.load_state_dict(take_prefix("ids.", weights))
        state = self.engine.state()
        state.update(with_prefix("weight.", take_prefix("reduction.", weights)))
        self.engine.load(state)

    def state(self) -> dict[str, Tensor]:
        """Weights and optimizer state, for a checkpoint."""
        return {**adam_state(self.optimizer, self.ids, "ids."), **with_prefix("reduction.", self.engine.state())}

    def load_state(self, tensors: dict[str, Tensor]) -> None:
        """Restores `state()`, written at any world size and ZeRO stage."""
        load_adam_state(self.optimizer, self.ids, "ids.", tensors)
        self.engine.load(take_prefix("reduction.", tensors))

    def write(self, best: dict[str, Tensor], vectors: TeacherVectors, selection: Selection) -> None:
        """Writes the teacher artifact and revision 0 of its vectors."""
        url = join(self.job.run_url, "teacher")
        standard = {
            f"standardisation.{m}.{part}": getattr(s, part) for m, s in self.resident.standardisation.items() for part in ("mean", "scale")
        }
        dims = {m: x.shape[1] for m, x in self.resident.features.items()}
        num_trained = sum(t.numel() for name, t in best.items() if self.job.config.prompt or ".prompt." not in name)
        facts = {
            "best_epoch": selection.best_epoch,
            "selected_by": selection.metric,
            "num_parameters": num_trained,
            "lineage": self.job.lineage,
        }
        write_weights(url, {**best, **standard}, dims, self.job.config, {**facts, "seed": self.job.seed})
        prompt = take_prefix("reduction.prompt.", best)
        write_revision(url, 0, vectors, prompt, {"lineage": self.job.lineage, "config": as_dict(self.job.config)})


def resume(
    checkpoints: Checkpoints, trainer: Any, recorder: Recorder, selection: Selection, worker: Worker
) -> tuple[dict[str, Tensor], int]:
    """Restores the newest checkpoint if there is one; returns the best weights so far and the epoch to go on with."""
    found = checkpoints.latest()
    if found is None:
        return trainer.weights(), 0
    tensors, state = found
    trainer.load_state(take_prefix("state.", tensors))
    recorder.history[:] = state["history"]
    selection.restore(state["selection"])
    if worker.is_first:
        recorder.say(f"resuming after epoch {state['epochs'] - 1}")
    return take_prefix("best.", tensors), state["epochs"]


def save(
    checkpoints: Checkpoints,
    epochs: int,
    trainer: Any,
    best: dict[str, Tensor],
    recorder: Recorder,
    selection: Selection,
    worker: Worker,
) -> None:
    """Writes a checkpoint after `epochs` epochs; every worker calls it, rank 0 writes."""
    tensors = {**with_prefix("state.", trainer.state()), **with_prefix("best.", best)}
    if worker.is_first:
        checkpoints.save(epochs, tensors, {"epochs": epochs, "history": recorder.history, "selection": selection.state()})
    worker.barrier()


def report_epoch(recorder: Recorder, row: dict, selection: Selection) -> None:
    """Records an epoch and says how it went."""
    recorder.record(row)
    text = f"epoch {row['epoch']:3d}  loss {row['loss']:.4f}  {row['seconds']:.1f} s"
    if "waiting" in row:
        text += f"  waiting for labels {row['waiting']:.0%}"
    value = row.get(f"validation/{selection.metric}")
    if value is not None:
        text += f"  validation {selection.metric} {value:.4f} (best {selection.best_value:.4f}, epoch {selection.best_epoch})"
    recorder.say(text)
