"""Reduction layers under torch's Adam alone take DeepSpeed's steps at ZeRO stage 0, bit for bit, and go on from each other's state."""

import pytest
import torch
from promptmm.core.teacher.reduction import PromptConstants, build_reduction
from promptmm.distributed.config import ClusterConfig
from promptmm.distributed.engines.reduction.deepspeed import DeepSpeedReduction
from promptmm.distributed.engines.reduction.plain import LARGEST_NORM, PlainReduction

DIMS, ITEMS, STEPS = {"visual": 20, "textual": 12}, 26, 4


@pytest.fixture
def towers(process_group, teacher_config, worker):
    """Makes a learner of one kind, and steps towards fixed targets on some items."""
    generator = torch.Generator().manual_seed(1)

    def draw(*shape):
        return torch.randn(*shape, generator=generator)

    features, targets, tokens = {m: draw(ITEMS, dim) / dim**0.5 for m, dim in DIMS.items()}, draw(ITEMS, 6), draw(ITEMS, 6)
    gram = {m: tokens.T @ x for m, x in features.items()}
    constants = PromptConstants(tokens, draw(5, 6), gram, {m: x.sum(0) for m, x in features.items()})
    config = teacher_config()

    def inputs(rows, number):
        return constants, rows, {m: x[rows] for m, x in features.items()}, (0, number)

    def make(kind):
        module = build_reduction(DIMS, config, 0)
        if kind == "plain":
            return PlainReduction(module, 0.01, worker)
        return DeepSpeedReduction(module, 0.01, torch.float32, ClusterConfig(), worker, inputs(torch.arange(0), 0))

    def train(learner, first, scale=1.0):
        """Losses and lengths of the gradients of some steps; the second step's loss is multiplied by `scale`."""
        losses, norms = [], []
        for number in range(first, first + STEPS):
            learner.scale_rates(0.9**number)
            learner.zero_grad()
            rows = torch.randperm(ITEMS, generator=torch.Generator().manual_seed(number))[:14]
            out = learner(*inputs(rows, number))
            errors = [(out[f"reduced.{m}"] - targets[rows]).square().mean() for m in DIMS]
            loss = (errors[0] + errors[1] + out["user"].square().mean()) * (scale if number == first + 1 else 0.01)
            learner.backward(loss)
            module = learner.module if isinstance(learner, PlainReduction) else learner.engine.module
            norms.append(float(torch.stack([p.grad.norm() for p in module.parameters() if p.grad is not None]).norm()))
            learner.step()
            losses.append(float(loss))
        return losses, norms

    return make, train


def same(one, other):
    assert set(one) == set(other)
    for name, value in one.items():
        assert torch.equal(value.float(), other[name].float()), name


def state(learner):
    return {name: tensor.detach().clone() for name, tensor in learner.stream_state()}


def test_the_same_steps_bit_for_bit(towers):
    """One of them with a gradient that is cut to length 1."""
    make, train = towers
    plain, sharded = make("plain"), make("deepspeed")
    same(plain.weights(), sharded.weights())
    found = [train(learner, 0, scale=50.0) for learner in (plain, sharded)]
    assert found[0] == found[1]
    norms = found[0][1]
    assert norms[1] > LARGEST_NORM
    assert max(norms[0], *norms[2:]) < LARGEST_NORM
    same(state(plain), state(sharded))
    same(plain.weights(), sharded.weights())


@pytest.mark.parametrize(("begins", "goes_on"), [("plain", "deepspeed"), ("deepspeed", "plain")])
def test_state_moves_from_one_to_the_other(towers, begins, goes_on):
    make, train = towers
    whole, successor = make(begins), make(goes_on)
    train(whole, 0, scale=50.0)
    halfway = state(whole)
    assert int(halfway["step"]) == STEPS
    train(successor, 7)  # whatever it was before
    successor.load_state(halfway)
    same(state(successor), halfway)
    assert train(successor, STEPS, scale=50.0) == train(whole, STEPS, scale=50.0)
    same(state(successor), state(whole))
