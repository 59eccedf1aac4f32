"""Declares the settings of a training stage, and of neighbour sampling."""

from dataclasses import dataclass

from ..errors import InputError
from ..settings import check_bounds, setting


def user_balance_setting() -> float:
    """Returns the field `user_balance` of a section whose stage visits train interactions."""
    field: float = setting(
        0.0,
        "weigh a train interaction in the loss and in L2 by its user's degree^-user_balance; 0 gives all interactions the same weight, 1 "
        "gives all users the same total weight; a spectral start does not read it, and has start_user_exponent",
        ge=0,
        le=1,
    )
    return field


def start_setting(further: str = "") -> str:
    """Returns the field `start` of a section whose ID tables are learnt.

    Args:
        further: Ends the help.
    """
    field: str = setting(
        "random",
        "what the ID tables begin with: random, normal values; spectral, the leading singular vectors of the normalised train graph, which "
        f"rank well before the first step{further}",
        choices=("random", "spectral"),
    )
    return field


def start_exponent_setting(side: str) -> float:
    """Returns the field `start_user_exponent` or `start_item_exponent` of a section whose ID tables may start spectrally.

    Args:
        side: "user" or "item".
    """
    of_users = (
        "exponent a of the users' degrees in a spectral start, which is of D_U^-a A D_I^-b: 0.5 (and 0.5 for items) is the normalised "
        "adjacency, 0 leaves users of many interactions their full share; user_balance does not reach the start: 0.5 + user_balance / 2 "
        "here is the normalised adjacency, balanced alike; read with start=spectral"
    )
    of_items = (
        "exponent b of the items' degrees in a spectral start, which is of D_U^-a A D_I^-b: 0.5 (and 0.5 for users) is the normalised "
        "adjacency, less leaves popular items more of their share; read with start=spectral"
    )
    field: float = setting(0.5, of_users if side == "user" else of_items, ge=0, le=1)
    return field


def examples_setting() -> str:
    """Returns the field `examples` of a section with a training stage."""
    field: str = setting(
        "interactions",
        "what an epoch visits: interactions, each train interaction once, in random order; histories, each once too, but users in random "
        "order, each with all of its train items in a row, so that a batch holds few users and a softmax over items costs little; users, "
        "every user alike, with one of the user's train items",
        choices=("interactions", "histories", "users"),
    )
    return field


@dataclass(frozen=True)
class OptimizerConfig:
    """Settings of one training stage: epochs, batches and learning rate; sections `teacher.train` and `student.train`."""

    epochs: int = setting(
        100, "largest number of epochs; the exact number where there is no validation split; 0: what it would start with", ge=0
    )
    batch_size: int = setting(2048, "train interactions in a step, over all workers", ge=1)
    learning_rate: float = setting(0.001, "Adam's step size for the ID tables, and for a student's other weights", gt=0)
    patience: int = setting(10, "evaluations without a better validation metric before training stops", ge=1)
    evaluate_every: int = setting(1, "epochs between validations", ge=1)
    checkpoint_every: int = setting(5, "epochs between checkpoints", ge=1)
    lr_decay: float = setting(1.0, "factor on the learning rates after each epoch", gt=0, le=1)

    def __post_init__(self) -> None:
        check_bounds(self, "train")


@dataclass(frozen=True)
class SamplingConfig:
    """Settings of the sampled engine's neighbour blocks; section `sampling`."""

    fan_outs: list[int] = setting(
        [10], "neighbours drawn for a node, by hop from the batch outwards; -1: all of them; further hops take the last figure"
    )
    exclude_seed_edges: bool = setting(
        False, "leave the batch's own positive pairs out of its blocks, in both directions; false: they stay, as in the full engine"
    )
    prefetch: int = setting(2, "batches (or micro-batches) that are made ahead in the background", ge=1)

    def __post_init__(self) -> None:
        check_bounds(self, "sampling")
        if not self.fan_outs or any(n < 1 and n != -1 for n in self.fan_outs):
            raise InputError(f"sampling.fan_outs={self.fan_outs}: name at least one fan-out, each at least 1, or -1 for all neighbours")

    def fan_outs_of(self, hops: int) -> list[int]:
        """Returns the fan-outs of `hops` hops."""
        return [self.fan_outs[min(hop, len(self.fan_outs) - 1)] for hop in range(hops)]
