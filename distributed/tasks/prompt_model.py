"""Computes the vectors of PromptMM's own teacher in both engines, for the tasks that train all of it, or its prompt alone."""

import torch
from torch import Tensor

from ...core.config import TeacherConfig
from ...core.random import random_below
from ...core.rows import rownorm
from ...core.sampling import STREAM_DECAY, share_of_part
from ...core.sides import ITEMS, SIDE_NAMES, SIDES, USERS
from ...core.teacher import teacher_kind
from ...core.teacher.model import as_compared, fuse, teacher_vectors, with_compared_modalities
from ...core.vectors import TeacherVectors
from ..artifacts.teacher import vectors_by_name
from ..engines.view import ID, PROMPT, REDUCED, Batch, View
from ..worker import Worker
from .base import Pair, Task
from .layers import LayerByLayer, Tables


class PromptModelTask(Task[Batch]):
    """Computes the equations of docs/method.md 1 from ID vectors, prompts and reduced features, whatever a subclass learns of them.

    A subclass sets `train` and `seed`, and in `build` the attributes `dims` and `num_items`.

    Args:
        config: The teacher's settings.
        worker: This worker.
        engine: The engine, "full" or "sampled".

    Attributes:
        dims: d_m by modality, in the order that modalities have everywhere.
        num_items: The number of items in the catalog.
        samples_decay: Whether the feature decay's mean over items is estimated on as many items as a step has examples, since the features
            of all items would be needed otherwise.
    """

    reads_features: bool = True
    dims: dict[str, int]
    num_items: int

    def __init__(self, config: TeacherConfig, worker: Worker, engine: str) -> None:
        self.config, self.worker, self.dim, self.user_balance = config, worker, config.dim, config.user_balance
        self.kind = teacher_kind(config)
        self.num_hops, self.whitens = self.kind.num_hops(config), config.whiten
        self.sends_prompt = config.prompt and bool(config.id_prompt_weight or config.prompt_loss_weight)
        self.samples_decay = engine == "sampled"

    @property
    def vector_dims(self) -> dict[str, int]:
        modal = {f"modal.{modality}": self.dim for modality in self.dims}
        prompt = {PROMPT: self.dim} if self.config.prompt else {}
        return {"final": self.kind.final_dim(self.config, len(self.dims)), **modal, **prompt}

    def decayed_items(self, number: int, part: int, num_parts: int) -> tuple[Tensor, int | None]:
        """Draws this worker's share of the items that a micro-batch's feature decay is taken over.

        A step draws as many items as the batch size, uniformly, which gives an unbiased estimate of the mean over the catalog; a smaller
        catalog is taken as a whole.

        Args:
            number: Number of the step since the start of training.
            part: The micro-batch.
            num_parts: The number of micro-batches in a step.

        Returns:
            The items, int64 [n], and their number over the whole step; no items and None where the decay is not sampled.
        """
        none = torch.zeros(0, dtype=torch.int64)
        if not self.samples_decay or not self.config.feature_decay:
            return none, None
        total = min(self.num_items, self.train.batch_size)
        share = share_of_part(total, part, num_parts, self.worker.rank, self.worker.world_size)
        slots = torch.arange(share.start, share.stop)
        if total == self.num_items:
            return slots, total
        return random_below(self.num_items, STREAM_DECAY, self.seed, number, slots), total

    def all_vectors(self, view: View, final: bool = True) -> TeacherVectors:
        """Computes all of the teacher's vectors of the users and items at the view's level 0; `final` is that of `teacher_vectors`."""
        prompt = dict(zip(SIDE_NAMES, (view.users[PROMPT], view.items[PROMPT]))) if PROMPT in view.users else {}
        return teacher_vectors(view.graph, view.users[ID], view.items[ID], prompt, view.reduced(), self.config, final)

    def vectors(self, view: View) -> dict[str, Pair]:
        return vectors_by_name(with_compared_modalities(self.all_vectors(view), self.config))

    def infer(self, layers: LayerByLayer) -> None:
        """Computes the equations of docs/method.md 1.3 to 1.5, layer by layer."""
        config, dims = self.config, self.vector_dims
        final = layers.tables("final", dims["final"])
        path = final if dims["final"] == self.dim else layers.tables("path", self.dim)  # fusion may make final vectors wider
        start = layers.tables("layer", self.dim)
        modal = {m: layers.tables(f"modal.{m}", self.dim) for m in self.dims}
        self._infer_start(layers, start)
        layers.mean_of_layers(start, path, config.layers, None)
        for tables in modal.values():
            for _ in range(max(1, config.modality_layers)):
                layers.propagate(tables, tables, USERS)
                if config.modality_layers:
                    layers.propagate(tables, tables, ITEMS)

        def fused(side: int, places: Tensor, ids: Tensor) -> Tensor:
            parts = [tables[side].read(places) for tables in modal.values()]
            return fuse(path[side].read(places), parts, config, of_users=side == USERS)

        layers.fill(final, fused)
        if config.feature_temperature is not None:
            for tables in modal.values():
                self._infer_compared(layers, tables)

    def _infer_compared(self, layers: LayerByLayer, tables: Tables) -> None:
        """Replaces M_m^U and M_m^I by the vectors whose dot products are the scores by modality."""
        layers.fill(tables, lambda side, places, ids: as_compared(tables[side].read(places), self.config, of_users=side == USERS))

    def _infer_start(self, layers: LayerByLayer, start: tuple) -> None:
        """Writes layer 0, the prompts, and z_m as the items' first vectors by modality."""
        prompts = layers.tables(PROMPT, self.dim) if self.config.prompt else None
        for places in layers.own_chunks():
            out = self.reduce(layers.inputs(*places))
            for side in SIDES:
                rows = layers.ids[side].read(places[side])
                if prompts is not None:
                    prompt = out[SIDE_NAMES[side]].float().cpu()
                    prompts[side].write(places[side], prompt)
                    rows = rows + self.config.id_prompt_weight * rownorm(prompt)
                start[side].write(places[side], rows)
            for modality in self.dims:
                layers.tables(f"modal.{modality}", self.dim)[ITEMS].write(places[ITEMS], out[REDUCED + modality].float().cpu())
        layers.barrier()
