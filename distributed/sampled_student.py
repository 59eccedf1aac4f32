"""Stage 2 in the sampled engine: the student's ID tables are sharded, and its vectors are computed on neighbour blocks."""

from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch
from safetensors.torch import save_file
from torch import Tensor

from ..core.blocks import Blocks
from ..core.distillation import Decoders, Labels, distillation_terms, student_terms
from ..core.scoring import candidate_scores
from ..core.sides import ITEMS, SIDE_NAMES, USERS
from ..core.storage import join, write_artifact
from ..core.student import Student, build_student, projection_maps
from ..graph_store.backend import GraphConnection, RowTable
from ..graph_store.dataset import Dataset, open_dataset
from ..graph_store.dgl.connection import connect
from .checkpoints import adam_state, load_adam_state
from .exchange import RowExchange
from .labels import LabelJob, MaterialisedLabels, StreamedLabels
from .layerwise import add_to, chunks, edge_chunks, neighbour_sums, propagate
from .progress import Selection
from .resident import SERVICE_SECONDS
from .sampled import SampledModel, SampledTrainer, ServedRows, ShardedValidation
from .student_training import StudentJob, student_facts, student_stage
from .teacher_artifact import final_rows, modal_item_rows
from .training import stage_url, total_of
from .worker import Worker


@dataclass(frozen=True)
class StudentBatch:
    """One worker's share of a step.

    Attributes:
        step: Within the epoch.
        size: Of the global batch.
        labels: With users and candidates as rows of the blocks' level 0.
        weights: float32, of the examples, or None.
        blocks: Around the share's users and candidates.
        exchanges: For the rows of the blocks' users and items.
    """

    step: int
    size: int
    labels: Labels
    weights: Tensor | None
    blocks: Blocks
    exchanges: list[RowExchange]


class SampledStudent(SampledModel):
    """The student on one worker: ID tables sharded, maps and decoders replicated."""

    stage = "student"

    def __init__(self, job: StudentJob, worker: Worker, client: GraphConnection) -> None:
        assert job.sampling is not None
        config = job.student
        super().__init__(client, worker, job.sampling, config.train, config.dim, config.init_scale, config.user_balance, job.seed)
        self.job, self.config = job, config
        self.targets = modal_item_rows(join(job.run_url, "teacher"), job.revision, job.cluster.cache_dir) if job.config.use_teacher else {}
        if config.warm_start:
            self._start_from_teacher()
        model = build_student(replace(config, warm_start=False), 0, 0, job.seed)
        assert isinstance(model, Student)
        self.model = model
        teacher_dim = next(iter(self.targets.values())).dim if self.targets else config.dim
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(job.seed)
            self.decoders = Decoders(list(self.targets), config.dim, teacher_dim, job.config.decoder)
        self.trained = torch.nn.ModuleDict({"student": self.model, "decoders": self.decoders}).to(worker.device)
        self.optimizer = torch.optim.Adam(self.trained.parameters(), lr=config.train.learning_rate)
        self.source: MaterialisedLabels | StreamedLabels | None = None

    def _start_from_teacher(self) -> None:
        """Own rows of the ID tables from the teacher's final vectors, projected where the sizes differ; collective."""
        sides = final_rows(join(self.job.run_url, "teacher"), self.job.revision, self.job.cluster.cache_dir)
        grams = [torch.zeros(rows.dim, rows.dim, dtype=torch.float64) for rows in sides]
        for side in (USERS, ITEMS):
            for places in chunks(self.own_ids[side].numel()):
                rows = sides[side][self.own_ids[side][places]].double()
                grams[side].addmm_(rows.T, rows)
        self.worker.sum_(grams)
        maps = projection_maps(grams[USERS], grams[ITEMS], self.config.dim)
        for side in (USERS, ITEMS):
            for places in chunks(self.own_ids[side].numel()):
                rows = sides[side][self.own_ids[side][places]].double()
                self.ids[side].tables["weight"].write(places, (rows @ maps[side]).float())

    @property
    def batch_seconds(self) -> float:
        """Longest wait for a batch; a stream of labels has a deadline of its own."""
        return super().batch_seconds + self.job.cluster.start_timeout

    def open(self, epochs: range) -> None:
        """Opens the labels of these epochs."""
        job: LabelJob = self.job.label_job(self.worker)
        if self.targets and self.job.labels.mode == "streamed":
            self.source = StreamedLabels(job, list(self.targets), epochs, self.job.cluster)
        elif self.targets:
            self.source = MaterialisedLabels(self.job.run_url, job, list(self.targets))

    def close(self) -> None:
        """Ends a stream."""
        if isinstance(self.source, StreamedLabels):
            self.source.close()

    def _labels(self, epoch: int) -> Iterator[tuple[int, Labels]]:
        if self.source is not None:
            yield from self.source.epoch(epoch)
            return
        for step in range(self.num_steps):
            examples, users, positives = self.examples(epoch, step, self.share_of(step))
            yield step, Labels(users, torch.cat([positives[:, None], self.unseen(users, examples, 1, epoch)], 1))

    def batches(self, epoch: int) -> Iterator[StudentBatch]:
        """This worker's share of every step."""
        examples_epoch = self.source.written_epoch(epoch) if isinstance(self.source, MaterialisedLabels) else epoch
        for step, labels in self._labels(epoch):
            labels = labels.to("cpu")
            users, user_rows = torch.unique(labels.users, return_inverse=True)
            items, item_rows = torch.unique(labels.candidates, return_inverse=True)
            blocks = self.blocks(users, items, self.model.layers, epoch, step, examples_epoch)
            local = Labels(user_rows, item_rows, labels.scores, labels.modal_scores)
            weights = self.weights_of(labels.users)
            yield StudentBatch(step, self.size_of(step), local, weights, blocks, self.ask(blocks.users, blocks.items))

    def loss_terms(self, batch: StudentBatch) -> tuple[dict[str, Tensor], list[ServedRows]]:
        """The loss terms of this worker's share, and the ID rows that it serves; collective."""
        device = self.worker.device
        exchanges, served = batch.exchanges, self.serve(batch.exchanges)
        users, items = (x.gather(rows.rows) for x, rows in zip(exchanges, served))
        labels, share = batch.labels.to(device), batch.size / self.worker.world_size
        final_users, final_items = self.model.propagate(batch.blocks.to(device), users, items)
        scores = candidate_scores(final_users, final_items, labels.users, labels.candidates)
        rows = [users[labels.users], items[labels.candidates[:, 0]], items[labels.candidates[:, 1]]]
        weights = None if batch.weights is None else batch.weights.to(device)
        terms = student_terms(scores, rows, self.config.l2, share, weights)
        if self.targets:
            ids = batch.blocks.items[: batch.blocks.num_items[0]]  # ascending
            unique, count = self.worker.first_to_name(ids[batch.labels.candidates[:, 0]])
            places = torch.searchsorted(ids, unique)

            def targets(_: Tensor) -> list[Tensor]:
                return [rows[unique].to(device) for rows in self.targets.values()]

            terms.update(
                distillation_terms(
                    scores, final_items, labels, places.to(device), targets, self.decoders, share, self.job.config,
                    count / self.worker.world_size,
                )
            )  # fmt: skip
        return terms, served

    def train_step(self, batch: StudentBatch, epoch: int, learning_rate: float) -> dict[str, Tensor]:
        """Forward, backward and both optimizers; collective."""
        terms, served = self.loss_terms(batch)
        self.optimizer.zero_grad(set_to_none=True)
        total_of(terms).backward()
        self.worker.average_gradients(self.trained)
        self.optimizer.step()
        self.update([served], learning_rate)
        return terms

    def decay_rates(self, factor: float) -> None:
        """Scales the learning rate of maps and decoders."""
        self.optimizer.param_groups[0]["lr"] = self.config.train.learning_rate * factor

    def dense_weights(self) -> dict[str, Tensor]:
        """Maps and decoders."""
        return {name: t.detach().cpu().clone() for name, t in self.trained.state_dict().items()}

    def load_dense_weights(self, weights: dict[str, Tensor]) -> None:
        """Restores them."""
        self.trained.load_state_dict(weights)

    def dense_state(self) -> Iterator[tuple[str, Tensor]]:
        """Maps, decoders and Adam's state."""
        yield from adam_state(self.optimizer, self.trained, "").items()

    def load_dense_state(self, state: dict[str, Tensor]) -> None:
        """Restores it."""
        load_adam_state(self.optimizer, self.trained, "", state)


class StudentTables:
    """Exact inference of the student into sharded tables, layer by layer; collective."""

    def __init__(self, student: SampledStudent) -> None:
        self.student = student
        self.final, *self.layers = (
            [student.client.table(side, f"{name}_{side}", student.config.dim) for side in (USERS, ITEMS)]
            for name in ("student_final", "student_a", "student_b")
        )

    @torch.no_grad()
    def infer(self) -> None:
        """Fills the tables from the weights as they are."""
        student = self.student
        client, worker, num_layers = student.client, student.worker, student.model.layers
        for side in (USERS, ITEMS):
            for places in chunks(len(self.final[side])):
                rows = student.ids[side].read(places)
                self.final[side].write(places, rows)
                self.layers[0][side].write(places, rows)
        worker.barrier()
        now, then = self.layers
        maps = list(getattr(student.model, "maps", []))
        for layer in range(num_layers):
            for side in (USERS, ITEMS):
                if maps:
                    self._convolve(now, then[side], maps[layer])
                else:
                    propagate(client, student.own_ids, now[1 - side], then[side])
            for side in (USERS, ITEMS):
                add_to(self.final[side], then[side], scale=1 / (num_layers + 1) if layer + 1 == num_layers else 1.0)
            worker.barrier()
            now, then = then, now

    def _convolve(self, now: list[RowTable], target: RowTable, layer: torch.nn.Module) -> None:
        """One layer of the gcn student on own rows."""
        for places in edge_chunks(self.student.client, target.side):
            ids = self.student.own_ids[target.side][places]
            sums = neighbour_sums(self.student.client, ids, now[1 - target.side], target.side)
            rows = (sums + now[target.side].read(places)).to(self.student.worker.device)
            target.write(places, torch.tanh(layer(rows)).cpu())


def run_sampled_student(job: StudentJob, worker: Worker) -> None:
    """Trains on every worker as a client of the graph servers, then infers exactly and writes the student."""
    import ray

    dataset = open_dataset(join(job.run_url, "dataset"), job.cluster.cache_dir)
    nodes, session = list(worker.nodes), None
    if worker.is_first:
        session = ray.get(job.service.restart.remote(nodes, worker.world_size), timeout=SERVICE_SECONDS)
    with connect(job.service, worker.share(session), worker.rank, nodes) as client:
        train_sampled_student(job, worker, client, dataset)


def train_sampled_student(job: StudentJob, worker: Worker, client: GraphConnection, dataset: Dataset) -> None:
    """The same with a connection to the graph."""
    student = SampledStudent(job, worker, client)
    tables = StudentTables(student)
    validation = ShardedValidation.of(dataset, worker, student.train, job.student.dim, job.evaluation)
    trainer, stage = SampledStudentTrainer(student, tables.final, tables.infer, validation), student_stage(job, dataset)
    stage.train(trainer, job.stop_epoch, job.revision)
    trainer.restore_best()
    if worker.is_first:
        write_student(job, trainer, stage.selection)
        stage.recorder.close()
    worker.barrier()


class SampledStudentTrainer(SampledTrainer):
    """The student's trainer: its labels are opened once for all epochs."""

    model: SampledStudent

    def open(self, epochs: range) -> None:
        """Opens the labels of these epochs."""
        self.model.open(epochs)

    def close(self) -> None:
        """Ends a stream of labels."""
        self.model.close()


def write_student(job: StudentJob, trainer: SampledStudentTrainer, selection: Selection) -> None:
    """Writes the student, which is what ships and so fits one machine: final vectors, and ID tables with the maps."""
    model, counts = trainer.model, (trainer.model.client.num_users, trainer.model.client.num_items)
    whole = {SIDE_NAMES[side]: trainer.final[side].pull(torch.arange(counts[side])) for side in (USERS, ITEMS)}
    ids = {f"ids.{SIDE_NAMES[side]}": model.ids[side].tables["weight"].pull(torch.arange(counts[side])) for side in (USERS, ITEMS)}
    weights = {**{k: t.detach().cpu().contiguous().clone() for k, t in model.model.state_dict().items()}, **ids}
    facts = student_facts(job, selection, sum(t.numel() for t in weights.values()))
    with write_artifact(join(stage_url(job.run_url, "student"), "model"), "student-model", facts) as folder:
        save_file(whole, str(folder / "vectors.safetensors"))
        save_file(weights, str(folder / "weights.safetensors"))
    job.say(f"best epoch {selection.best_epoch}; student of {facts['num_parameters']:,} parameters written")
