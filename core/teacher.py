"""The cumbersome multi-modal teacher (method.md 1)."""

import itertools
from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from .config import TeacherConfig
from .features import LazyRows
from .graph import Propagation, light_propagation
from .losses import bpr_loss, l2_loss
from .random import derive_seed, dropout, random_normal
from .sampling import STREAM_DROPOUT, STREAM_INITIAL
from .scoring import candidate_scores
from .sides import SIDE_NAMES


class _RowNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x: Tensor) -> Tensor:
        norm = torch.linalg.vector_norm(x, dim=-1, keepdim=True)
        inverse = torch.where(norm > 0, 1 / norm, 0.0)
        y = x * inverse
        ctx.save_for_backward(y, inverse)
        return y

    @staticmethod
    def backward(ctx, grad: Tensor):
        y, inverse = ctx.saved_tensors
        return torch.addcmul(grad, y, (grad * y).sum(-1, keepdim=True), value=-1).mul_(inverse)


def rownorm(x: Tensor) -> Tensor:
    """Rows scaled to unit length; a zero row stays zero and passes no gradient (its direction is not defined)."""
    return _RowNorm.apply(x)


@dataclass(frozen=True)
class PromptConstants:
    """What the prompt is computed from; fixed before training.

    Attributes:
        item_tokens: h_I, float32 [num_items, d].
        user_tokens: h_U = Ã h_I, float32 [num_users, d].
        gram: Per modality G_m = h_I^T X_m, float32 [d, d_m].
        column_sums: Per modality s_m = X_m^T 1, float32 [d_m].
    """

    item_tokens: Tensor
    user_tokens: Tensor
    gram: dict[str, Tensor]
    column_sums: dict[str, Tensor]

    def to(self, device: torch.device | str) -> "PromptConstants":
        return PromptConstants(
            self.item_tokens.to(device),
            self.user_tokens.to(device),
            {m: g.to(device) for m, g in self.gram.items()},
            {m: s.to(device) for m, s in self.column_sums.items()},
        )


class PromptModule(nn.Module):
    """Soft prompts p_I = h_I W_I + b_I, p_U = h_U W_U + b_U and the contexts C_m = W_I^T G_m + b_I s_m^T (method.md 1.1, 1.2)."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.item_weight = nn.Parameter(torch.eye(dim))
        self.item_bias = nn.Parameter(torch.zeros(dim))
        self.user_weight = nn.Parameter(torch.eye(dim))
        self.user_bias = nn.Parameter(torch.zeros(dim))

    def forward(self, constants: PromptConstants) -> dict[str, Tensor]:
        """`user` [num_users, d], `item` [num_items, d] and `context.<modality>` [d, d_m]."""
        own = (self.item_weight, self.item_bias, self.user_weight, self.user_bias)
        # In a bfloat16 engine only the weights are rounded
        item_weight, item_bias, user_weight, user_bias = (p.to(constants.item_tokens.dtype) for p in own)
        out = {"item": constants.item_tokens @ item_weight + item_bias, "user": constants.user_tokens @ user_weight + user_bias}
        for modality, gram in constants.gram.items():
            out[f"context.{modality}"] = item_weight.T @ gram + torch.outer(item_bias, constants.column_sums[modality])
        return out


class FeatureReduction(nn.Module):
    """Prompt and reduction layers: the part of the teacher that DeepSpeed shards.

    z_m = Dropout(R_m(X_m + λ_f rownorm(p_I C_m))), for the rows of one shard of the catalog.
    """

    def __init__(self, dims: dict[str, int], config: TeacherConfig, recompute: bool = False) -> None:
        """Builds prompt and towers.

        Args:
            dims: d_m by modality; their order is the order of modalities everywhere.
            config: The teacher's settings.
            recompute: Activation checkpointing of the towers.
        """
        super().__init__()
        self.config = config
        self.prompt = PromptModule(config.dim)
        self.towers = nn.ModuleDict({f"of_{modality}": Tower(dim, config, recompute) for modality, dim in dims.items()})

    def forward(
        self,
        constants: PromptConstants,
        rows: Tensor,
        features: Mapping[str, Tensor | LazyRows],
        dropout_keys: tuple[int, ...] | None,
        ids: Tensor | None = None,
    ) -> dict[str, Tensor]:
        """Reduces some items.

        Args:
            constants: The prompt's constants; its tokens may be those of some users and items only.
            rows: int64 [n], the items' rows in `constants.item_tokens`.
            features: Features by modality [n, d_m]: standardised, float32, or read and standardised as they are multiplied.
            dropout_keys: Keys of the dropout masks, (seed, step); None in evaluation.
            ids: int64 [n], the items' dataset indices, where `rows` are not.

        Returns:
            The prompt module's output and `reduced.<modality>` [n, d], in the constants' dtype whatever the weights' is.
        """
        out = self.prompt(constants)
        own_prompt = out["item"][rows]
        for number, (name, tower) in enumerate(self.towers.items()):
            modality = name.removeprefix("of_")  # a module may not be called "type" or "values"; a modality may
            guided = self.config.prompt and self.config.feature_prompt_weight
            prompt = (own_prompt, out[f"context.{modality}"], self.config.feature_prompt_weight) if guided else None
            z = tower(features[modality], prompt).to(constants.item_tokens.dtype)
            if dropout_keys is not None:
                z = dropout(z, self.config.dropout, STREAM_DROPOUT, *dropout_keys, number, (rows if ids is None else ids)[:, None])
            out[f"reduced.{modality}"] = z
        return out


class GuidedLinear(nn.Linear):
    """The first reduction layer, W (x + λ_f rownorm(p C)) + b, without making a [n, d_m] matrix but the features themselves.

    With p the soft prompts [n, d] and C the context [d, d_m]: W (p C)^T is p (C W^T)^T, and |p_i C|² is p_i (C C^T) p_i^T, so the prompt
    costs O(n d²) in place of O(n d d_m). A row whose p C is zero gets none of it.
    """

    def forward(self, features: Tensor | LazyRows, prompt: tuple[Tensor, Tensor, float] | None = None) -> Tensor:
        """[n, out] in the weights' dtype, from the features and (p, C, λ_f)."""
        dtype = self.weight.dtype
        x = features.linear(self.weight) if isinstance(features, LazyRows) else F.linear(features.to(dtype), self.weight)
        if prompt is not None:
            rows, context, weight = prompt
            squares = ((rows @ (context @ context.T)) * rows).sum(1, keepdim=True)
            positive = squares > 0
            inverse = torch.where(positive, torch.where(positive, squares, 1.0).rsqrt(), 0.0)
            x = x + (weight * inverse).to(dtype) * (rows.to(dtype) @ (context.to(dtype) @ self.weight.T))
        return x + self.bias


class Tower(nn.Sequential):
    """A modality's reduction tower R_m: a guided linear layer, then LeakyReLU and linear layers.

    With `recompute` its backward pass runs the forward pass again in place of keeping the layers' outputs: gradients are the same bits.
    """

    def __init__(self, dim: int, config: TeacherConfig, recompute: bool = False) -> None:
        sizes = [dim, *config.hidden, config.dim]
        layers: list[nn.Module] = []
        for number, (inner, outer) in enumerate(itertools.pairwise(sizes)):
            linear = nn.Linear(inner, outer) if number else GuidedLinear(inner, outer)
            nn.init.xavier_uniform_(linear.weight)
            nn.init.zeros_(linear.bias)
            layers += [linear, nn.LeakyReLU(0.2, inplace=True)]
        super().__init__(*layers[:-1])
        self.recompute = recompute

    def forward(self, features: Tensor | LazyRows, prompt: tuple[Tensor, Tensor, float] | None = None) -> Tensor:
        """[n, d] from the features and the prompt's part, as in `GuidedLinear`."""
        if self.recompute and torch.is_grad_enabled():
            return checkpoint(self._layers, features, prompt, use_reentrant=False, preserve_rng_state=False)
        return self._layers(features, prompt)

    def _layers(self, features: Tensor | LazyRows, prompt: tuple[Tensor, Tensor, float] | None) -> Tensor:
        first, *others = self
        x = first(features, prompt)
        for layer in others:
            x = layer(x)
        return x


class IdTables(nn.Module):
    """User and item ID vectors E_U [num_users, d] and E_I [num_items, d]."""

    def __init__(self, num_users: int, num_items: int, dim: int, init_scale: float, seed: int) -> None:
        super().__init__()
        self.user = nn.Parameter(initial_rows("user", torch.arange(num_users), dim, init_scale, seed))
        self.item = nn.Parameter(initial_rows("item", torch.arange(num_items), dim, init_scale, seed))


def initial_rows(side: str, rows: Tensor, dim: int, init_scale: float, seed: int) -> Tensor:
    """The seeded start of some rows of an ID table, normal with deviation `init_scale`, whatever holds the others.

    Args:
        side: "user" or "item".
        rows: int64 [n], dataset indices.

    Returns:
        float32 [n, dim].
    """
    columns = torch.arange(dim, device=rows.device)
    return init_scale * random_normal(STREAM_INITIAL, seed, SIDE_NAMES.index(side), rows[:, None], columns)


def build_reduction(dims: dict[str, int], config: TeacherConfig, seed: int, recompute: bool = False) -> FeatureReduction:
    """The reduction layers and prompt with their seeded start; recompute: activation checkpointing of the towers."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(derive_seed(STREAM_INITIAL, seed, 1))
        return FeatureReduction(dims, config, recompute)


@dataclass(frozen=True)
class TeacherVectors:
    """What the teacher knows at one revision of its prompt.

    Attributes:
        user, item: Final vectors [num_users, d], [num_items, d].
        modal_user, modal_item: M_m^U and M_m^I by modality.
        prompt_user, prompt_item: Soft prompts p_U and p_I; None without a prompt.
        reduced: z_m by modality [num_items, d].
        path_user, path_item: What BPR trains in place of the final vectors: the collaborative ones, where these are but a part of them.
    """

    user: Tensor
    item: Tensor
    modal_user: dict[str, Tensor]
    modal_item: dict[str, Tensor]
    prompt_user: Tensor | None
    prompt_item: Tensor | None
    reduced: dict[str, Tensor]
    path_user: Tensor | None = None
    path_item: Tensor | None = None

    def with_reduced(self, reduced: dict[str, Tensor]) -> "TeacherVectors":
        """The same vectors with other rows of z_m."""
        return replace(self, reduced=reduced)

    def detach(self) -> "TeacherVectors":
        """The same vectors without their graph of gradients."""
        prompts = [None if p is None else p.detach() for p in (self.prompt_user, self.prompt_item)]
        modal = [{m: x.detach() for m, x in side.items()} for side in (self.modal_user, self.modal_item, self.reduced)]
        return TeacherVectors(self.user.detach(), self.item.detach(), modal[0], modal[1], prompts[0], prompts[1], modal[2])


def num_hops(config: TeacherConfig) -> int:
    """Hops that the teacher's vectors reach over the graph: L on the collaborative path, two for each round on a modality's, or one."""
    return max(config.layers, 2 * config.modality_layers, 1)


def teacher_vectors(
    graph: Propagation,
    user_ids: Tensor,
    item_ids: Tensor,
    prompt: dict[str, Tensor],
    reduced: dict[str, Tensor],
    config: TeacherConfig,
    final: bool = True,
) -> TeacherVectors:
    """Propagation and fusion (method.md 1.3 to 1.5), layer by layer; the vectors are those of the graph's level 0.

    With `config.fusion` "concat" the final vectors are [rownorm(e_U), η rownorm(M_m^U), ...] and [e_I, rownorm(M_m^I), ...], so that a
    score is <rownorm(e_U), e_I> + η Σ_m cos(M_m^U, M_m^I). With no round of propagation M_m^U = Ã z_m and M_m^I = z_m.

    Args:
        graph: The whole train graph, or sampled blocks of `num_hops(config)` hops.
        user_ids, item_ids: Rows of E_U and E_I at level `config.layers` or deeper.
        prompt: Output of the prompt module for the same rows; those of level 0 are enough where `config.id_prompt_weight` is 0.
        reduced: z_m by modality, the items' rows at level max(1, 2 · modality_layers) or deeper.
        final: False leaves the collaborative vectors in place of the final ones where the loss reads no others.
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
    p_user, p_item = (graph.users_at(prompt["user"], 0), graph.items_at(prompt["item"], 0)) if config.prompt else (None, None)
    path = (users, items) if config.fusion == "concat" else (None, None)
    if final or config.fusion != "concat":
        users = fuse(users, list(modal_user.values()), config, of_users=True)
        items = fuse(items, list(modal_item.values()), config, of_users=False)
    return TeacherVectors(users, items, modal_user, modal_item, p_user, p_item, reduced, *path)


def final_dim(config: TeacherConfig, num_modalities: int) -> int:
    """Size of the final vectors that `fuse` gives."""
    return config.dim * (1 + num_modalities if config.fusion == "concat" else 1)


def fuse(collaborative: Tensor, modal: list[Tensor], config: TeacherConfig, of_users: bool) -> Tensor:
    """Final vectors of any users (or items) from their collaborative vectors and those of every modality (method.md 1.5)."""
    parts = [rownorm(m) for m in modal]
    if config.fusion == "sum":
        return collaborative + config.fusion_weight * torch.stack(parts).sum(0) if parts else collaborative
    if of_users:  # η stands on one side of the product
        return torch.cat([rownorm(collaborative), *(config.fusion_weight * part for part in parts)], 1)
    return torch.cat([collaborative, *parts], 1)


def teacher_loss(
    vectors: TeacherVectors,
    user_ids: Tensor,
    item_ids: Tensor,
    users: Tensor,
    positives: Tensor,
    negatives: Tensor,
    num_examples: float,
    config: TeacherConfig,
    num_decayed: float | None = None,
    weights: Tensor | None = None,
    entries: Tensor | None = None,
) -> dict[str, Tensor]:
    """The terms of the teacher's loss (method.md 1.6), each with its weight; their sum is the loss.

    Args:
        vectors: The teacher's vectors with their graph of gradients.
        user_ids, item_ids: E_U and E_I.
        users, positives, negatives: int64 [batch].
        num_examples: Size of the global batch, where `users` is one shard of it: the shards' per-example terms add up to the mean.
        num_decayed: Rows that the mean of the feature decay is over, where `vectors.reduced` is a shard of them.
        weights: float32 [batch], of the examples in BPR and L2 (`UserWeights`); 1 where not given.
        entries: float32 [batch], Ã's entries at the positive pairs; needed with `config.leave_one_out`.
    """

    pairs = torch.stack([positives, negatives], 1)

    def bpr(user_vectors: Tensor, item_vectors: Tensor) -> Tensor:
        scores = candidate_scores(user_vectors, item_vectors, users, pairs)
        return bpr_loss(scores[:, 0], scores[:, 1], num_examples, weights)

    def modal_bpr(of_users: Tensor, of_items: Tensor) -> Tensor:
        if not config.leave_one_out and config.feature_temperature is None:
            return bpr(of_users, of_items)
        queries, compared = of_users[users], of_items[pairs]  # [batch, d], [batch, 2, d]
        if config.leave_one_out:
            assert entries is not None
            queries = queries - entries[:, None] * compared[:, 0]
        if config.feature_temperature is not None:
            queries, compared = rownorm(queries) / config.feature_temperature, rownorm(compared)
        scores = (queries[:, None] * compared).sum(-1)
        return bpr_loss(scores[:, 0], scores[:, 1], num_examples, weights)

    if vectors.path_user is not None and vectors.path_item is not None:
        terms = {"bpr": bpr(vectors.path_user, vectors.path_item)}
    else:
        terms = {"bpr": bpr(vectors.user, vectors.item)}
    if config.feature_loss_weight:
        modal = [modal_bpr(vectors.modal_user[m], vectors.modal_item[m]) for m in vectors.modal_user]
        terms["feature_bpr"] = config.feature_loss_weight * torch.stack(modal).sum()
    if config.prompt_loss_weight and vectors.prompt_user is not None and vectors.prompt_item is not None:
        terms["prompt_bpr"] = config.prompt_loss_weight * bpr(vectors.prompt_user, vectors.prompt_item)
    terms["l2"] = config.l2 * l2_loss([user_ids[users], item_ids[positives], item_ids[negatives]], num_examples, weights)
    if config.feature_decay:
        count = num_decayed or next(iter(vectors.reduced.values())).shape[0]
        decay = torch.stack([z.square().sum() for z in vectors.reduced.values()]).sum() / count
        terms["feature_decay"] = config.feature_decay * decay
    return terms
