"""Computes the teacher's prompt and feature reduction (docs/method.md 1.1 and 1.2), the part of the teacher that DeepSpeed shards."""

import itertools
from collections.abc import Mapping
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from ..config import TeacherConfig
from ..features import LazyRows
from ..random import derive_seed, dropout
from ..sampling import STREAM_DROPOUT, STREAM_INITIAL


@dataclass(frozen=True)
class PromptConstants:
    """Holds the constants that the prompt is computed from; they are fixed before training.

    Attributes:
        item_tokens: The items' hard tokens h_I, float32 [num_items, d].
        user_tokens: The users' hard tokens h_U = Ã h_I, float32 [num_users, d].
        gram: G_m = h_I^T X_m by modality, float32 [d, d_m].
        column_sums: s_m = X_m^T 1 by modality, float32 [d_m].
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
    """Computes soft prompts p_I = h_I W_I + b_I, p_U = h_U W_U + b_U and contexts C_m = W_I^T G_m + b_I s_m^T (docs/method.md 1.1, 1.2)."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.item_weight = nn.Parameter(torch.eye(dim))
        self.item_bias = nn.Parameter(torch.zeros(dim))
        self.user_weight = nn.Parameter(torch.eye(dim))
        self.user_bias = nn.Parameter(torch.zeros(dim))

    def forward(self, constants: PromptConstants) -> dict[str, Tensor]:
        """Returns the prompts `user` [num_users, d] and `item` [num_items, d], and the contexts `context.<modality>` [d, d_m]."""
        weights = (self.item_weight, self.item_bias, self.user_weight, self.user_bias)
        # With bfloat16 only the weights are rounded: the prompt is computed in the constants' float32
        item_weight, item_bias, user_weight, user_bias = (p.to(constants.item_tokens.dtype) for p in weights)
        out = {"item": constants.item_tokens @ item_weight + item_bias, "user": constants.user_tokens @ user_weight + user_bias}
        for modality, gram in constants.gram.items():
            out[f"context.{modality}"] = item_weight.T @ gram + torch.outer(item_bias, constants.column_sums[modality])
        return out


class FeatureReduction(nn.Module):
    """Computes z_m = Dropout(R_m(X_m + λ_f rownorm(p_I C_m))) and the prompts, for the users and items that one worker holds."""

    def __init__(self, dims: dict[str, int], config: TeacherConfig, recompute: bool = False) -> None:
        """Builds prompt and towers.

        Args:
            dims: d_m by modality; their order is the order of modalities everywhere.
            config: The teacher's settings.
            recompute: Whether the towers' backward pass computes hidden layers again (activation checkpointing).
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
        """Reduces the features of some items.

        Args:
            constants: The prompt's constants, with the tokens of all users and items or of some.
            rows: int64 [n], the items' rows in `constants.item_tokens`.
            features: Standardised features by modality: float32 [n, d_m], or rows that are read and standardised while they are multiplied.
            dropout_keys: Keys of the dropout masks, (seed, step); None in evaluation.
            ids: int64 [n], the items' dataset indices; None where these are `rows`.

        Returns:
            The prompt module's output, and `reduced.<modality>` [n, d], in the dtype of the constants whatever the dtype of the weights.
        """
        out = self.prompt(constants)
        item_prompts = out["item"][rows]
        for number, (name, tower) in enumerate(self.towers.items()):
            modality = name.removeprefix("of_")  # a module may not be called "type" or "values"; a modality may
            guided = self.config.prompt and self.config.feature_prompt_weight
            prompt = (item_prompts, out[f"context.{modality}"], self.config.feature_prompt_weight) if guided else None
            z = tower(features[modality], prompt).to(constants.item_tokens.dtype)
            if dropout_keys is not None:
                z = dropout(z, self.config.dropout, STREAM_DROPOUT, *dropout_keys, number, (rows if ids is None else ids)[:, None])
            out[f"reduced.{modality}"] = z
        return out


class GuidedLinear(nn.Linear):
    """Computes the first reduction layer, W (x + λ_f rownorm(p C)) + b, without a [n, d_m] matrix of prompts (docs/method.md 1.2).

    With p the soft prompts [n, d] and C the context [d, d_m], (p C) W^T = p (C W^T) and |p_i C|² = p_i (C C^T) p_i^T, so the prompt costs
    O(n d²) in place of O(n d d_m). A row whose p C is zero gets no prompt.
    """

    def forward(self, features: Tensor | LazyRows, prompt: tuple[Tensor, Tensor, float] | None = None) -> Tensor:
        """Returns [n, out] in the weights' dtype, from features [n, d_m] and `prompt`, which is (p, C, λ_f) or None."""
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
    """Computes a modality's reduction tower R_m: a guided linear layer, then LeakyReLU and linear layers.

    With `recompute` the backward pass runs the forward pass again in place of keeping the layers' outputs; gradients are equal to the last
    bit.
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
        """Returns [n, d] from the arguments of `GuidedLinear.forward`."""
        if self.recompute and torch.is_grad_enabled():
            return checkpoint(self._layers, features, prompt, use_reentrant=False, preserve_rng_state=False)
        return self._layers(features, prompt)

    def _layers(self, features: Tensor | LazyRows, prompt: tuple[Tensor, Tensor, float] | None) -> Tensor:
        first, *others = self
        x = first(features, prompt)
        for layer in others:
            x = layer(x)
        return x


def build_reduction(dims: dict[str, int], config: TeacherConfig, seed: int, recompute: bool = False) -> FeatureReduction:
    """Builds the reduction layers and the prompt with seeded random weights; the arguments are those of `FeatureReduction`."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(derive_seed(STREAM_INITIAL, seed, 1))
        return FeatureReduction(dims, config, recompute)
