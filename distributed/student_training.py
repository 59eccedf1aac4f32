"""Stage 2: trains the student on Ray Train workers from labels (materialised or streamed), beside a resident teacher, or alone."""

import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from ..core.config import DistillationConfig, EvaluationConfig, SamplingConfig, StudentConfig, as_dict
from ..core.distillation import Decoders, Labels, distillation_terms, student_terms
from ..core.graph import BipartiteGraph
from ..core.sampling import UnseenItems, UserWeights, candidate_lists, epoch_order, rank_slice
from ..core.scoring import candidate_scores
from ..core.storage import join, write_artifact
from ..core.student import build_student
from ..graph_store.dataset import Dataset, open_dataset
from .checkpoints import Checkpoints, adam_state, load_adam_state, take_prefix, with_prefix
from .config import ClusterConfig, LabelConfig
from .labels import LabelJob, MaterialisedLabels, StreamedLabels
from .progress import Recorder, Selection
from .prompt_tuning import PromptTuner, inline_candidates
from .teacher_artifact import TeacherRevision, read_revision, write_revision
from .training import ReplicatedTrainer, Stage, Totals, Validation, stage_url, total_of
from .worker import Worker


@dataclass(frozen=True)
class StudentJob:
    """What the driver sends to every worker.

    Attributes:
        run_url: The run's folder.
        student, config, labels, evaluation, cluster: Settings; `config` is the distillation's.
        seed: Seed of everything random.
        num_examples: Train interactions.
        revision: The prompt's revision that this round's labels carry.
        stop_epoch: Where this round ends.
        is_last: Whether the student is written at the end.
        service: Where a resident teacher's graph and features are (see `load_resident`), else None.
        lines: The `ProgressLines` actor.
        lineage: Checksums of what the student is made from.
        sampling: Neighbour blocks of the sampled engine; None for the full one.
    """

    run_url: str
    student: StudentConfig
    config: DistillationConfig
    labels: LabelConfig
    evaluation: EvaluationConfig
    cluster: ClusterConfig
    seed: int
    num_examples: int
    revision: int
    stop_epoch: int
    is_last: bool
    service: Any
    lines: Any
    lineage: dict = field(default_factory=dict)
    sampling: SamplingConfig | None = None

    def label_job(self, worker: Worker | None = None) -> LabelJob:
        """The labels of this job: of whole steps, or of one worker's shard."""
        batch = self.student.train.batch_size
        shard = {} if worker is None else {"rank": worker.rank, "world_size": worker.world_size}
        return LabelJob(
            join(self.run_url, "dataset"), join(self.run_url, "teacher"), self.revision, self.config, batch,
            max(1, self.labels.block_rows // batch), self.num_examples, self.seed, self.cluster.cache_dir, **shard,
        )  # fmt: skip

    def say(self, text: str) -> None:
        """Shows a line on the driver's terminal."""
        Recorder("", "student", self.lines).say(text)


class Examples:
    """Unlabelled candidate lists, made in the worker itself: for a student alone and beside a resident teacher."""

    def __init__(self, job: LabelJob, graph: BipartiteGraph, worker: Worker, tuner: PromptTuner | None) -> None:
        self.job, self.worker, self.tuner = job, worker, tuner
        self.users, self.items = graph.users.rows, graph.users.columns
        self.unseen = UnseenItems(graph.users)

    def epoch(self, epoch: int) -> Iterator[tuple[int, Labels]]:
        """(step, this worker's examples of it) for every step of an epoch."""
        order = epoch_order(self.job.num_examples, self.job.seed, epoch).to(self.worker.device)
        for step in range(self.job.num_steps):
            batch = order[step * self.job.batch_size : (step + 1) * self.job.batch_size]
            mine = batch[rank_slice(batch.numel(), self.worker.rank, self.worker.world_size)]
            users, positives = self.users[mine], self.items[mine]
            if self.tuner is not None:
                candidates = inline_candidates(self.job, users, positives, mine, self.unseen, self.tuner, epoch)
            else:
                candidates = candidate_lists(users, positives, mine, self.unseen, 1, None, 0, self.job.seed, epoch)
            yield step, Labels(users, candidates)


def train_student_loop(arguments: dict) -> None:
    """The loop of one Ray Train worker."""
    job: StudentJob = arguments["job"]
    worker = Worker.current(job.cluster.use_gpu, job.cluster.worker_threads)
    if job.sampling is not None:
        from .sampled_student import run_sampled_student

        run_sampled_student(job, worker)
    else:
        run_student(job, worker, open_dataset(join(job.run_url, "dataset"), job.cluster.cache_dir))


def run_student(job: StudentJob, worker: Worker, dataset: Dataset) -> None:
    """Trains with validation and checkpoints up to the round's end, and writes the student at the last."""
    graph = train_graph(dataset).to(worker.device)
    trainer = StudentTrainer(job, worker, graph, Validation.of(dataset, graph.users, job.evaluation, worker))
    stage = student_stage(job, dataset)
    epochs = stage.train(trainer, job.stop_epoch, job.revision)
    if not job.is_last:  # the next round goes on from here
        stage.save(trainer, epochs)
    else:
        trainer.load_weights(trainer.best)
        trainer.write(stage.selection)
    if worker.is_first:
        stage.recorder.close()
    worker.barrier()


def student_stage(job: StudentJob, dataset: Dataset) -> Stage:
    """The stage's recorder, selection and checkpoints."""
    select_by = job.evaluation.select_by if dataset.has_split("validation") else None
    return Stage("student", job.run_url, job.student.train, select_by, job.lines, job.cluster.cache_dir)


def student_facts(job: StudentJob, selection: Selection, num_parameters: int) -> dict:
    """What the trained student's manifest says."""
    return {
        "best_epoch": selection.best_epoch,
        "selected_by": selection.metric,
        "num_parameters": num_parameters,
        "config": as_dict(job.student),
        "distillation": as_dict(job.config),
        "seed": job.seed,
        "lineage": job.lineage,
    }


def train_graph(dataset: Dataset) -> BipartiteGraph:
    """The train graph of a dataset."""
    train = dataset.csr("train")
    return BipartiteGraph.from_pairs(train.rows, train.columns, dataset.num_users, dataset.num_items)


class StudentTrainer(ReplicatedTrainer):
    """The student and its decoders with their optimizer, and the teacher's part: frozen vectors, a resident teacher or none."""

    def __init__(self, job: StudentJob, worker: Worker, graph: BipartiteGraph, validation: Validation | None = None) -> None:
        self.job, self.worker, self.graph, self.validation = job, worker, graph, validation
        self.user_weights = UserWeights.of(graph.users.pointers, job.student.user_balance)
        self.source: MaterialisedLabels | StreamedLabels | Examples | None = None
        self.tuner: PromptTuner | None = None
        self.revision: TeacherRevision | None = None
        teacher_url, cache_dir = join(job.run_url, "teacher"), job.cluster.cache_dir
        if job.config.use_teacher:
            self.revision = read_revision(teacher_url, job.revision, cache_dir)
            if job.config.regime == "inline":
                self.tuner = PromptTuner.load(worker, job.service, teacher_url, job.revision, job.config, cache_dir)
        self.model, self.decoders = build_modules(job, graph, self.revision)
        self.model.to(worker.device)
        self.decoders.to(worker.device)
        self.modalities = list(self.revision.vectors.modal_item) if self.revision else []
        self.targets = {m: self.revision.vectors.modal_item[m].to(worker.device) for m in self.modalities} if self.revision else {}
        self.trained = torch.nn.ModuleDict({"student": self.model, "decoders": self.decoders})
        self.optimizer = torch.optim.Adam(self.trained.parameters(), lr=job.student.train.learning_rate)

    def open(self, epochs: range) -> None:
        """Opens where the batches of these epochs come from."""
        job = self.job.label_job(self.worker)
        if self.revision is None or self.tuner is not None:
            self.source = Examples(job, self.graph, self.worker, self.tuner)
        elif self.job.labels.mode == "streamed":
            self.source = StreamedLabels(job, self.modalities, epochs, self.job.cluster)
        else:
            self.source = MaterialisedLabels(self.job.run_url, job, self.modalities)

    def close(self) -> None:
        """Ends a stream."""
        if isinstance(self.source, StreamedLabels):
            self.source.close()

    def validate(self) -> dict[str, float] | None:
        """Validation metrics, None without the split."""
        return None if self.validation is None else self.validation(*self.final_vectors())

    def train_epoch(self, epoch: int, recorder: Recorder | None) -> dict[str, float]:
        """One pass over the train interactions; returns the mean of every loss term and the share of time spent waiting for labels."""
        assert self.source is not None, "open() comes first"
        config = self.job.student.train
        self.optimizer.param_groups[0]["lr"] = config.learning_rate * config.lr_decay**epoch
        job, totals, waited = self.job.label_job(), Totals(self.worker), 0.0
        asked = started = time.monotonic()
        for step, labels in self.source.epoch(epoch):
            waited += time.monotonic() - asked
            num_examples = min(job.batch_size, job.num_examples - step * job.batch_size)
            terms = self.train_step(labels.to(self.worker.device), num_examples)
            totals.add(terms, num_examples / job.num_examples, f"student epoch {epoch}, step {step}")
            if recorder is not None:
                recorder.say_within_epoch(epoch, step + 1, job.num_steps, started)
            asked = time.monotonic()
        return {**totals.row(epoch), "waiting": waited / max(time.monotonic() - started, 1e-9), "revision": self.job.revision}

    def train_step(self, labels: Labels, num_examples: int) -> dict[str, Tensor]:
        """Forward, backward and optimizer on this worker's share of a global batch; inline, the prompt takes its step too."""
        share = num_examples / self.worker.world_size
        users, items = self.model.vectors(self.graph)
        rows = self.model.rows(labels.users, [labels.candidates[:, 0], labels.candidates[:, 1]])
        scores = candidate_scores(users, items, labels.users, labels.candidates)
        weights = self.user_weights(labels.users) if self.user_weights else None
        terms = student_terms(scores, rows, self.job.student.l2, share, weights)
        if self.revision is not None:
            unique = self.worker.union(labels.candidates[:, 0])
            if self.tuner is not None:
                terms.update(self.tuner.terms(scores, items, labels.users, labels.candidates, unique, self.decoders, share))
            else:
                terms.update(distillation_terms(scores, items, labels, unique, self._targets, self.decoders, share, self.job.config))
        self.optimizer.zero_grad(set_to_none=True)
        total_of(terms).backward()
        self.worker.average_gradients(self.trained)
        self.optimizer.step()
        if self.tuner is not None:
            self.tuner.step(self.worker)
        return terms

    def _targets(self, items: Tensor) -> list[Tensor]:
        return [self.targets[m][items] for m in self.modalities]

    @torch.no_grad()
    def final_vectors(self) -> tuple[Tensor, Tensor]:
        """The student's final user and item vectors."""
        return self.model.vectors(self.graph)

    def weights(self) -> dict[str, Tensor]:
        """Copies of student, decoders and (inline) prompt, on the CPU."""
        out = {name: t.detach().cpu().clone() for name, t in self.trained.state_dict().items()}
        return {**out, **with_prefix("prompt.", self.tuner.prompt_state() if self.tuner else {})}

    def load_weights(self, weights: dict[str, Tensor]) -> None:
        """Restores `weights()`."""
        self.trained.load_state_dict({k: t for k, t in weights.items() if not k.startswith("prompt.")})
        if self.tuner is not None:
            self.tuner.reduction.prompt.load_state_dict(take_prefix("prompt.", weights))

    def state(self) -> dict[str, Tensor]:
        """Weights and optimizer state, for a checkpoint."""
        out = adam_state(self.optimizer, self.trained, "student.")
        if self.tuner is not None:
            out.update(adam_state(self.tuner.optimizer, self.tuner.reduction.prompt, "tuner."))
        return out

    def load_state(self, tensors: dict[str, Tensor]) -> None:
        """Restores `state()`, written at any world size."""
        load_adam_state(self.optimizer, self.trained, "student.", tensors)
        if self.tuner is not None:
            load_adam_state(self.tuner.optimizer, self.tuner.reduction.prompt, "tuner.", tensors)

    def write(self, selection: Selection) -> None:
        """Writes the trained student, and inline the last revision of the teacher's vectors."""
        from safetensors.torch import save_file

        users, items = self.final_vectors()
        tuned = self.tuner
        if tuned is not None:
            with torch.no_grad():
                vectors = tuned.vectors()
            if self.worker.is_first:
                url = join(self.job.run_url, "teacher")
                write_revision(
                    url,
                    self.job.revision + 1,
                    vectors,
                    tuned.prompt_state(),
                    {"lineage": self.job.lineage, "regime": "inline"},
                )
        if not self.worker.is_first:
            return
        facts = student_facts(self.job, selection, sum(p.numel() for p in self.model.parameters()))
        with write_artifact(join(stage_url(self.job.run_url, "student"), "model"), "student-model", facts) as folder:
            vectors_out = {"user": users, "item": items}
            save_file(
                {k: t.float().cpu().contiguous().clone() for k, t in vectors_out.items()},
                str(folder / "vectors.safetensors"),
            )
            weights = {k: t.detach().cpu().contiguous().clone() for k, t in self.model.state_dict().items()}
            save_file(weights, str(folder / "weights.safetensors"))
        self.job.say(f"best epoch {selection.best_epoch}; student of {facts['num_parameters']:,} parameters written")


def build_modules(job: StudentJob, graph: BipartiteGraph, revision: TeacherRevision | None) -> tuple[Any, Decoders]:
    """The student and its decoders with their seeded start."""
    frozen = (revision.vectors.user, revision.vectors.item) if revision else None
    model = build_student(job.student, graph.num_users, graph.num_items, job.seed, frozen)
    targets = revision.vectors.modal_item if revision else {}
    teacher_dim = next(iter(targets.values())).shape[1] if targets else job.student.dim  # of the targets: final vectors may be longer
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(job.seed)
        decoders = Decoders(list(targets), job.student.dim, teacher_dim, job.config.decoder)
    return model, decoders


def latest_student(job: StudentJob, worker: Worker, graph: BipartiteGraph) -> tuple[Tensor, Tensor, Decoders, int]:
    """Final vectors and decoders of the student as the newest checkpoint has it, and the epochs it has seen."""
    found = Checkpoints(join(stage_url(job.run_url, "student"), "checkpoints"), job.cluster.cache_dir).latest()
    assert found is not None, "a round of training ends with a checkpoint"
    tensors, state = found
    revision = read_revision(join(job.run_url, "teacher"), job.revision, job.cluster.cache_dir)
    model, decoders = build_modules(job, graph, revision)
    trained = torch.nn.ModuleDict({"student": model, "decoders": decoders})
    with torch.no_grad():
        for name, parameter in trained.named_parameters():
            parameter.copy_(tensors[f"state.student.weight.{name}"])
    trained.to(worker.device).requires_grad_(False)
    users, items = model.vectors(graph)
    return users, items, decoders, state["epochs"]
