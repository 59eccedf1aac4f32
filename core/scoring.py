"""Scores of candidate lists, fast in both directions."""

import torch
import torch.nn.functional as F
from torch import Tensor

from .autograd import Context, Gradients


class _CandidateScores(torch.autograd.Function):
    """Scores of candidate lists; the item gradient is a sum over the examples of each item, not a scatter."""

    @staticmethod
    def forward(ctx: Context, user_vectors: Tensor, item_vectors: Tensor, users: Tensor, candidates: Tensor) -> Tensor:
        x, y = user_vectors[users], F.embedding(candidates, item_vectors)
        ctx.save_for_backward(x, y, users, candidates)
        ctx.num_users, ctx.num_items = user_vectors.shape[0], item_vectors.shape[0]
        return torch.bmm(y, x[:, :, None]).squeeze(2)

    @staticmethod
    def backward(ctx: Context, grad: Tensor) -> Gradients:
        x, y, users, candidates = ctx.saved_tensors
        to_users = to_items = None
        if ctx.needs_input_grad[0]:
            own = torch.bmm(grad[:, None], y).squeeze(1)
            to_users = x.new_zeros(ctx.num_users, x.shape[1]).index_add_(0, users, own)
        if ctx.needs_input_grad[1]:
            flat = candidates.reshape(-1)
            order = torch.argsort(flat, stable=True)  # stable: sums in the same order every time
            pointers = torch.cat([flat.new_zeros(1), torch.bincount(flat, minlength=ctx.num_items).cumsum(0)])
            weights = grad.reshape(-1)[order]
            examples = order // candidates.shape[1]
            to_items = F.embedding_bag(examples, x, pointers, mode="sum", include_last_offset=True, per_sample_weights=weights)
        return to_users, to_items, None, None


def candidate_scores(user_vectors: Tensor, item_vectors: Tensor, users: Tensor, candidates: Tensor) -> Tensor:
    """Dot products [batch, 1 + K] of each user with its candidates."""
    return _CandidateScores.apply(user_vectors, item_vectors, users, candidates)
