"""Defines names of types that custom autograd functions share."""

from typing import Any, TypeAlias

from torch import Tensor

Context: TypeAlias = Any  # the `ctx` that torch hands to a function; it takes attributes of any name
Gradients: TypeAlias = tuple[Tensor | None, ...]  # one gradient for each argument of `forward`
