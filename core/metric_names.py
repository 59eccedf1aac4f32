"""Reads the names that metrics have in settings and results: the metric and the length of the lists, such as "recall@20"."""

from collections.abc import Sequence

from .errors import InputError


def split_metric(name: str) -> tuple[str, int]:
    """Returns metric and list length of a name such as "recall@20"."""
    metric, _, k = name.rpartition("@")
    return metric, int(k)


def check_metric(setting: str, name: str, metrics: Sequence[str], cutoffs: Sequence[int], which: str = "") -> None:
    """Checks that an evaluation computes a metric that a setting names.

    Args:
        setting: The setting as it is shown in the message.
        name: Its value, such as "recall@20".
        metrics: The metrics that may be named.
        cutoffs: The list lengths of evaluations, `evaluation.cutoffs`.
        which: What the message says about these metrics.

    Raises:
        InputError: it is not one of these metrics at one of these lengths.
    """
    metric, _, k = name.rpartition("@")
    if metric not in metrics or k not in map(str, cutoffs):
        raise InputError(
            f"{setting}={name!r}: expected METRIC@K with METRIC one of {', '.join(metrics)}{which} and K one of "
            f"evaluation.cutoffs={list(cutoffs)}"
        )
