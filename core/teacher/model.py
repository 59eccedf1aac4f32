"""Defines PromptMM's own teacher: propagation, fusion and loss (docs/method.md 1.3 to 1.6), on the whole graph or on sampled blocks."""

from collections.abc import Mapping
from dataclasses import replace
from typing import ClassVar

import torch
from torch import Tensor

from ..config import TeacherConfig
from ..graph import Propagation, light_propagation
from ..losses import bpr_loss, l2_loss
from ..rows import rownorm
from ..scoring import candidate_scores
from ..vectors import TeacherVectors
from .base import Teacher
from .softmax import softmax_term
from .triples import Triples


class PromptTeacher(Teacher):
    """Declares the method's large multi-modal teacher; `teacher_vectors` and `teacher_loss` compute it from rows that an engine holds."""

    engines: ClassVar[tuple[str, ...]] = ("full", "sampled")
    reads_features: ClassVar[bool] = True
    has_prompt: ClassVar[bool] = True
    has_towers: ClassVar[bool] = True
    losses: ClassVar[tuple[str, ...]] = ("bpr", "softmax")

    @classmethod
    def final_dim(cls, config: TeacherConfig, num_modalities: int) -> int:
        """Returns the number of columns of the final vectors that `fuse` computes."""
        return config.dim * (1 + num_modalities if config.fusion == "concat" else 1)

    @classmethod
    def num_hops(cls, config: TeacherConfig) -> int:
        """Returns the larger of L, for the collaborative path, and two hops for each round of modality propagation; at least 1."""
        return max(config.layers, 2 * config.modality_layers, 1)

    @classmethod
    def untouched_items(cls, config: TeacherConfig, vectors: TeacherVectors, weights: Mapping[str, Tensor], rows: Tensor) -> Tensor | None:
        """Returns the fusion of M_m^I with e_I = 0; None with rounds of modality propagation, which leave such an item a row of zeros."""
        if config.modality_layers or not vectors.modal_item:
            return None
        modal = [x[rows] for x in vectors.modal_item.values()]
        return fuse(torch.zeros(rows.numel(), config.dim), modal, config, of_users=False)


def teacher_vectors(
    graph: Propagation,
    user_ids: Tensor,
    item_ids: Tensor,
    prompt: dict[str, Tensor],
    reduced: dict[str, Tensor],
    config: TeacherConfig,
    final: bool = True,
) -> TeacherVectors:
    """Computes propagation and fusion (docs/method.md 1.3 to 1.5); returns the vectors of the users and items at the graph's level 0.

    With `config.fusion` "concat" the final vectors are [rownorm(e_U), η rownorm(M_m^U), ...] and [e_I, rownorm(M_m^I), ...], so that a
    score is <rownorm(e_U), e_I> + η Σ_m cos(M_m^U, M_m^I). With `config.loss` "softmax" the final vectors of "sum", and e_I in those of
    "concat", have unit length: cosines rank, as they were trained. Without rounds of modality propagation M_m^U = Ã z_m and M_m^I = z_m.

    Args:
        graph: The whole train graph, or sampled blocks of `PromptTeacher.num_hops(config)` hops.
        user_ids, item_ids: Rows of E_U and E_I at level `config.layers` or deeper.
        prompt: `user` and `item`, the soft prompts of the same rows. Those of level 0 are enough where `config.id_prompt_weight` is 0;
            empty where the loss reads no prompts either.
        reduced: z_m by modality, the items' rows at level max(1, 2 · modality_layers) or deeper.
        config: The teacher's settings.
        final: False skips the fusion with `config.fusion` "concat", whose loss does not read final vectors: `user` and `item` are then
            the collaborative vectors.
    """
    users, items = user_ids, item_ids
    if config.prompt and config.id_prompt_weight:
        users = users + config.id_prompt_weight * rownorm(prompt["user"])
        items = items + config.id_prompt_weight * rownorm(prompt["item"])
    users, items = light_propagation(graph, users, items, config.layers)
    modal_user, modal_item = {}, {}
    for modality, z in reduced.items():
        of_users = None if config.modality_layers else graph.to_users(z, 0)
        for hop in reversed(range(0, 2 * config.modality_layers, 2)):
            of_users = graph.to_users(z, hop + 1)
            z = graph.to_items(of_users, hop)
        assert of_users is not None
        modal_user[modality], modal_item[modality] = graph.users_at(of_users, 0), graph.items_at(z, 0)
    p_user, p_item = (graph.users_at(prompt["user"], 0), graph.items_at(prompt["item"], 0)) if config.prompt and prompt else (None, None)
    path = (users, items) if config.fusion == "concat" else (None, None)
    if final or config.fusion != "concat":
        users = fuse(users, list(modal_user.values()), config, of_users=True)
        items = fuse(items, list(modal_item.values()), config, of_users=False)
    return TeacherVectors(users, items, modal_user, modal_item, p_user, p_item, reduced, *path)


def as_compared(rows: Tensor, config: TeacherConfig, of_users: bool) -> Tensor:
    """Returns vectors of one modality whose dot products are the scores that BPR on the modality compares (docs/method.md 1.6).

    These are the scores by modality that students learn from (docs/method.md 3).

    Args:
        rows: M_m^U (or M_m^I), [..., d].
        config: The teacher's settings.
        of_users: Whether the rows are users'.

    Returns:
        [..., d]. With `config.feature_temperature` τ_f, users' rows have the length 1 / τ_f and items' rows the length 1, so that a dot
        product is a cosine divided by τ_f; without, the rows are as they came.
    """
    if config.feature_temperature is None:
        return rows
    return rownorm(rows) / config.feature_temperature if of_users else rownorm(rows)


def with_compared_modalities(vectors: TeacherVectors, config: TeacherConfig) -> TeacherVectors:
    """Returns the vectors with those by modality `as_compared`: what an artifact holds and labels are made from, while the loss reads M."""
    users = {m: as_compared(rows, config, of_users=True) for m, rows in vectors.modal_user.items()}
    return replace(vectors, modal_user=users, modal_item={m: as_compared(x, config, of_users=False) for m, x in vectors.modal_item.items()})


def fuse(collaborative: Tensor, modal: list[Tensor], config: TeacherConfig, of_users: bool) -> Tensor:
    """Computes the final vectors of some users (or items) from their vectors by path (docs/method.md 1.5).

    Args:
        collaborative: e_U (or e_I) [n, d].
        modal: M_m^U (or M_m^I) of every modality, [n, d] each.
        config: The teacher's settings.
        of_users: Whether the rows are users: with "concat", η and the unit length of e_U belong to the users' side.
    """
    parts = [rownorm(m) for m in modal]
    by_cosines = config.loss == "softmax"
    if config.fusion == "sum":
        fused = collaborative + config.fusion_weight * torch.stack(parts).sum(0) if parts else collaborative
        return rownorm(fused) if by_cosines else fused
    if of_users:  # η multiplies one side of the dot product alone
        return torch.cat([rownorm(collaborative), *(config.fusion_weight * part for part in parts)], 1)
    return torch.cat([rownorm(collaborative) if by_cosines else collaborative, *parts], 1)


def teacher_loss(vectors: TeacherVectors, user_ids: Tensor, item_ids: Tensor, batch: Triples, config: TeacherConfig) -> dict[str, Tensor]:
    """Computes the terms of the teacher's loss (docs/method.md 1.6), each times its weight, by name; their sum is the loss.

    Args:
        vectors: The teacher's vectors with their graph of gradients.
        user_ids, item_ids: Rows of E_U and E_I, which the batch's users and items index.
        batch: The examples.
        config: The teacher's settings.
    """
    users, num_examples, weights = batch.users, batch.num_examples, batch.weights
    pairs = torch.stack([batch.positives, batch.negatives], 1)

    def bpr(user_vectors: Tensor, item_vectors: Tensor) -> Tensor:
        scores = candidate_scores(user_vectors, item_vectors, users, pairs)
        return bpr_loss(scores[:, 0], scores[:, 1], num_examples, weights)

    def modal_bpr(of_users: Tensor, of_items: Tensor) -> Tensor:
        if not config.leave_one_out and config.feature_temperature is None:
            return bpr(of_users, of_items)
        queries, compared = of_users[users], of_items[pairs]  # [batch, d], [batch, 2, d]
        if config.leave_one_out:
            assert batch.entries is not None
            queries = queries - batch.entries[:, None] * compared[:, 0]
        queries, compared = as_compared(queries, config, of_users=True), as_compared(compared, config, of_users=False)
        scores = (queries[:, None] * compared).sum(-1)
        return bpr_loss(scores[:, 0], scores[:, 1], num_examples, weights)

    ranked = vectors.user, vectors.item
    if vectors.path_user is not None and vectors.path_item is not None:
        ranked = vectors.path_user, vectors.path_item
    terms = {"softmax": softmax_term(*ranked, batch, config)} if config.loss == "softmax" else {"bpr": bpr(*ranked)}
    if config.feature_loss_weight:
        modal = [modal_bpr(vectors.modal_user[m], vectors.modal_item[m]) for m in vectors.modal_user]
        terms["feature_bpr"] = config.feature_loss_weight * torch.stack(modal).sum()
    if config.prompt_loss_weight and vectors.prompt_user is not None and vectors.prompt_item is not None:
        terms["prompt_bpr"] = config.prompt_loss_weight * bpr(vectors.prompt_user, vectors.prompt_item)
    if config.l2:
        rows = [user_ids[users], item_ids[batch.positives], item_ids[batch.negatives]]
        terms["l2"] = config.l2 * l2_loss(rows, num_examples, weights)
    if config.feature_decay:
        count = batch.num_decayed or next(iter(vectors.reduced.values())).shape[0]
        decay = torch.stack([z.square().sum() for z in vectors.reduced.values()]).sum() / count
        terms["feature_decay"] = config.feature_decay * decay
    return terms
