"""Holds the method: models, prompt, losses, metrics and serving. It needs torch and torch_geometric, and no engine."""

from typing import Any

__all__ = ["InputError", "Recommender", "load_student", "write_lists"]


def __getattr__(name: str) -> Any:
    if name in ("load_student", "Recommender"):
        from . import serving

        return getattr(serving, name)
    if name == "write_lists":
        from .lists import write_lists

        return write_lists
    if name == "InputError":
        from .errors import InputError

        return InputError
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
