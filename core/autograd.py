"""Names for custom autograd functions."""

from typing import Any, TypeAlias

from torch import Tensor

Context: TypeAlias = Any  # torch's context of a function, which takes attributes of any name
Gradients: TypeAlias = tuple[Tensor | None, ...]  # one for each argument of forward
