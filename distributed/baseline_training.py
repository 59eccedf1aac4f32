"""Trains a baseline (`core/baselines.py`) in the teacher's place: the same loop, selection, checkpoints and artifact.

Every worker has all weights, and gradients are averaged as those of ID tables are; features stay with the worker that owns the items, which
maps them under the current weights, so that d-sized rows travel.
"""

import torch
from torch import Tensor

from ..core.baselines import baseline_loss, build_baseline
from ..core.config import as_dict
from ..core.item_graph import ItemGraph, nearest_neighbours
from ..core.sampling import rank_slice
from ..core.storage import join
from ..core.teacher import TeacherVectors
from .checkpoints import adam_state, load_adam_state, take_prefix, with_prefix
from .progress import Recorder, Selection
from .teacher_artifact import write_revision, write_weights
from .teacher_training import WholeGraphTrainer
from .training import total_of


class BaselineTrainer(WholeGraphTrainer):
    """The baseline's weights under Adam: tables with `teacher.train.learning_rate`, what is learnt on features with
    `teacher.reduction_learning_rate`.

    Item graphs are functions of the weights at the end of an epoch, so a checkpoint need not hold them.
    """

    def __post_init__(self) -> None:
        super().__post_init__()
        config, graph, device = self.job.config, self.resident.graph, self.worker.device
        self.dims = {m: x.shape[1] for m, x in self.resident.features.items()}
        self.model = build_baseline(config, graph.num_users, graph.num_items, self.dims, self.job.seed).to(device)
        of_features = self.model.feature_parameters()
        others = [p for p in self.model.parameters() if all(p is not own for own in of_features)]
        self.optimizer = torch.optim.Adam(others, lr=config.train.learning_rate)
        if of_features:
            self.optimizer.add_param_group({"params": of_features, "lr": config.reduction_learning_rate})
        self._link()

    @torch.no_grad()
    def _link(self) -> None:
        """Makes the item graphs anew."""
        self.model.link(self._item_graph, self._reduced(), lambda: {m: self.resident.gather(x) for m, x in self.resident.features.items()})

    def _item_graph(self, rows: Tensor) -> ItemGraph:
        """Every worker searches for its share of the items, in blocks of `evaluation.memory_mib`, and all have the same graph."""
        k, mine = self.job.config.item_neighbours, rank_slice(rows.shape[0], self.worker.rank, self.worker.world_size)
        ids = torch.zeros(rows.shape[0], k, dtype=torch.int64, device=rows.device)
        similarities = torch.zeros(rows.shape[0], k, device=rows.device)
        ids[mine], similarities[mine] = nearest_neighbours(rows, k, self.job.evaluation.memory_mib, mine)
        self.worker.sum_([ids, similarities])
        return ItemGraph.from_neighbours(ids, similarities)

    def _reduced(self) -> dict[str, Tensor]:
        return {m: self.resident.gather(x) for m, x in self.model.reduce(self.resident.features).items()}

    def set_learning_rates(self, decay: float) -> None:
        config = self.job.config
        for group, rate in zip(self.optimizer.param_groups, (config.train.learning_rate, config.reduction_learning_rate)):
            group["lr"] = rate * decay

    def train_epoch(self, epoch: int, recorder: Recorder | None) -> dict[str, float]:
        """As in the base class; then the item graphs are those of the weights that it leaves."""
        row = super().train_epoch(epoch, recorder)
        self._link()
        return row

    def train_step(self, epoch: int, step: int, examples: Tensor, num_examples: int) -> dict[str, Tensor]:
        users, positives = self.train_users[examples], self.train_items[examples]
        negatives = self.unseen.draw(users, examples, 1, self.job.seed, epoch)[:, 0]
        weights, share = self.resident.user_weights, num_examples / self.worker.world_size
        vectors = self.model.vectors(self.resident.graph, self._reduced())
        terms = baseline_loss(self.model, vectors, users, positives, negatives, share, weights(users) if weights else None)
        self.optimizer.zero_grad(set_to_none=True)
        total_of(terms).backward()
        self.worker.average_gradients(self.model)
        self.optimizer.step()
        return terms

    @torch.no_grad()
    def vectors(self) -> TeacherVectors:
        return self.model.vectors(self.resident.graph, self._reduced())

    def weights(self) -> dict[str, Tensor]:
        return with_prefix("model.", {name: p.detach().cpu().clone() for name, p in self.model.named_parameters()})

    def load_weights(self, weights: dict[str, Tensor]) -> None:
        self.model.load_state_dict(take_prefix("model.", weights))
        self._link()

    def state(self) -> dict[str, Tensor]:
        return adam_state(self.optimizer, self.model, "model.")

    def load_state(self, tensors: dict[str, Tensor]) -> None:
        load_adam_state(self.optimizer, self.model, "model.", tensors)
        self._link()

    def write(self, vectors: TeacherVectors, selection: Selection) -> None:
        config, url = self.job.config, join(self.job.run_url, "teacher")
        facts = self.facts(selection, sum(p.numel() for p in self.model.parameters()))
        write_weights(url, {**self.best, **self.resident.standardisation_tensors()}, self.dims, config, facts)
        write_revision(url, 0, vectors, {}, {"lineage": self.job.lineage, "config": as_dict(config)})
