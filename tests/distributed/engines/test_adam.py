"""The fused Adam of a worker's weights beside torch's plain one."""

import torch
from promptmm.distributed.engines.adam import fused_adam


def draw(seed, *shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def test_steps_are_those_of_the_plain_adam():
    ours, theirs = (torch.nn.ParameterList([draw(0, 37, 5), draw(1, 3)]) for _ in range(2))
    optimizers = fused_adam([{"params": list(ours), "lr": 0.05}]), torch.optim.Adam(theirs.parameters(), lr=0.05)
    for step in range(30):
        for parameters, optimizer in zip((ours, theirs), optimizers):
            for place, parameter in enumerate(parameters):
                parameter.grad = (parameter - draw(2 + place, *parameter.shape)).detach() * draw(10 + step, 1)
            optimizer.step()
    assert optimizers[0].defaults["fused"]
    for a, b in zip(ours, theirs):
        torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-5)


def test_a_gradient_with_other_strides_is_taken():
    """As autograd makes them along a dimension of one element."""
    weight = torch.nn.Parameter(torch.zeros(2, 1, 100))
    torch.bmm(draw(0, 10, 2, 100).transpose(0, 1), weight.transpose(1, 2)).square().sum().backward()
    weight.grad = draw(1, 2, 100, 1).transpose(1, 2)
    assert weight.grad.stride() != weight.stride()
    expected = -0.1 * weight.grad.sign()
    fused_adam([{"params": [weight], "lr": 0.1}]).step()
    torch.testing.assert_close(weight.detach(), expected, atol=1e-5, rtol=0)
