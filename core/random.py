"""Draws counter-based random numbers: every draw is a pure function of its keys, never of rank, order or device.

The mixing function is SplitMix64 (Steele, Lea, Flood 2014), applied once for each key.
"""

import torch
from torch import Tensor

_MULTIPLIER_1 = 0xBF58476D1CE4E5B9 - (1 << 64)
_MULTIPLIER_2 = 0x94D049BB133111EB - (1 << 64)
_INCREMENT = 0x9E3779B97F4A7C15 - (1 << 64)
_WORD = (1 << 64) - 1


def _shift_right(x: Tensor, bits: int) -> Tensor:
    return (x >> bits) & ((1 << (64 - bits)) - 1)  # torch shifts int64 arithmetically


def _mix(x: Tensor) -> Tensor:
    x = x + _INCREMENT
    x = (x ^ _shift_right(x, 30)) * _MULTIPLIER_1
    x = (x ^ _shift_right(x, 27)) * _MULTIPLIER_2
    return x ^ _shift_right(x, 31)


def _mix_integer(x: int) -> int:
    """Computes `_mix` of one signed 64-bit integer, without a tensor's overhead."""
    x = (x + _INCREMENT) & _WORD
    x = ((x ^ (x >> 30)) * _MULTIPLIER_1) & _WORD
    x = ((x ^ (x >> 27)) * _MULTIPLIER_2) & _WORD
    return _signed(x ^ (x >> 31))


def _signed(x: int) -> int:
    return (x & _WORD) - ((x & (1 << 63)) << 1)


def random_bits(*keys: int | Tensor) -> Tensor:
    """Draws 64 random bits for each element of the broadcast keys, as int64.

    Args:
        keys: Integers or int64 tensors that broadcast together; the order matters.
    """
    device = next((key.device for key in keys if isinstance(key, Tensor)), torch.device("cpu"))
    state: int | Tensor = 0
    for key in keys:
        if isinstance(key, Tensor):
            state = _mix(key.long() ^ state)
        else:
            state = _mix(state ^ key) if isinstance(state, Tensor) else _mix_integer(state ^ _signed(key))
    return state if isinstance(state, Tensor) else torch.tensor(state, dtype=torch.int64, device=device)


def random_uniform(*keys: int | Tensor) -> Tensor:
    """Draws a float32 in [0, 1) for each element of the broadcast keys."""
    return _shift_right(random_bits(*keys), 40).to(torch.float32) * 2.0**-24


def random_normal(*keys: int | Tensor) -> Tensor:
    """Draws a float32 standard normal value for each element of the broadcast keys: the normal quantile of 53 random bits."""
    uniform = (_shift_right(random_bits(*keys), 11).double() + 0.5) * 2.0**-53
    return torch.special.ndtri(uniform).float()


def permuted(positions: Tensor, size: int, *keys: int) -> Tensor:
    """Applies a pseudo-random permutation of [0, size) to positions, without making the whole permutation.

    A balanced Feistel network of six rounds permutes the next power of four; it is applied again until the result is below `size` (Black
    and Rogaway 2002).

    Args:
        positions: int64 in [0, size).
        size: At most 2**62.
        keys: Keys of the permutation.

    Returns:
        int64 in [0, size), in the shape of `positions`.
    """
    half = max(1, -(-(size - 1).bit_length() // 2))
    mask = (1 << half) - 1
    rounds = [int(random_bits(*keys, number)) for number in range(6)]
    out, todo = positions.clone(), torch.arange(positions.numel(), device=positions.device)
    values = positions.flatten()
    while todo.numel():
        left, right = values >> half, values & mask
        for state in rounds:
            left, right = right, left ^ (_mix(right ^ state) & mask)  # equals random_bits(*keys, number, right)
        values = (left << half) | right
        inside = values < size
        out.view(-1)[todo[inside]] = values[inside]
        todo, values = todo[~inside], values[~inside]
    return out


def random_below(bound: int | Tensor, *keys: int | Tensor) -> Tensor:
    """Draws an int64 in [0, bound), with bound < 2**31, for each element of the broadcast keys."""
    return (_shift_right(random_bits(*keys), 33) * bound) >> 31


def below(bound: Tensor, bits: Tensor) -> Tensor:
    """Returns what `random_below` draws, an int64 in [0, bound), from bits of `random_bits` that are at hand."""
    return (_shift_right(bits, 33) * bound) >> 31


def further_bits(bits: Tensor, key: int | Tensor) -> Tensor:
    """Returns `random_bits(*keys, key)` from `bits`, the result of `random_bits(*keys)`, so that shared keys are mixed once."""
    return _mix(bits ^ torch.as_tensor(key, dtype=torch.int64, device=bits.device))


def derive_seed(*keys: int) -> int:
    """Returns a seed for a torch.Generator, in [0, 2**63)."""
    return int(_shift_right(random_bits(*keys), 1))


def dropout(x: Tensor, probability: float, *keys: int | Tensor) -> Tensor:
    """Applies dropout whose mask depends on the keys and the column alone, so that any split of the rows draws the same mask.

    Args:
        x: Values, float [rows, columns].
        probability: Probability of an element to become zero; the others are scaled by 1 / (1 - probability).
        keys: Integers, or int64 tensors [rows, 1], for instance (seed, step, modality, row index).
    """
    if probability == 0:
        return x
    words = torch.arange(-(-x.shape[1] // 4), device=x.device)  # 64 random bits decide four columns, 16 bits each
    bits = random_bits(*keys, words).view(torch.int16)[:, : x.shape[1]]
    keep = bits >= round(probability * 2**16) - 2**15
    return x * keep / (1 - probability)
