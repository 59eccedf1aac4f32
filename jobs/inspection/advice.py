"""Which settings the facts of a catalog ask for, and why: a few rules, each with the measurement that it stands on.

A rule is here only where docs/accuracy.md ("What a catalog's facts say about its settings") has figures for it, all on validation. A
catalog for which no rule speaks keeps the defaults.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, TypeAlias

from .facts import CO_OCCURRENCE, CO_OCCURRENCE_BALANCED, CO_OCCURRENCE_OTHERS, CatalogFacts, content
from .rankings import Ranking

Value: TypeAlias = bool | int | float | str | dict[str, Any]

BUSY_SHARE = 0.3  # measured: .71 asks for balance; .00, .01 and .05 do not; nothing is known of what lies between
COLD_SHARE = 0.02  # measured: .07 asks for features of an item's own; .001 and 0 do not
COLD_AUC = 0.55  # what features have to tell about cold items, where .5 is chance
LOUD_DIM = 0.5  # effective dimensions, as a share of the columns; measured: .02 to .44 gain from whitening
CERTAIN = 2.0  # standard errors of a difference that counts


@dataclass(frozen=True)
class Advice:
    """A setting that the catalog asks for.

    Attributes:
        setting: Its dotted name.
        value: The value.
        because: Why, as a sentence.
    """

    setting: str
    value: Value
    because: str

    @property
    def word(self) -> str:
        """The advice as a word of the command line."""
        return f"{self.setting}={str(self.value).lower() if isinstance(self.value, bool) else self.value}"


def advice_for(facts: CatalogFacts) -> list[Advice]:
    """Lists the settings that the facts ask for; a function of the facts alone. The settings may be set together."""
    return [*_balance(facts), *_whitening(facts), *_cold_items(facts)]


def is_clearly_above(first: Ranking, second: Ranking) -> bool:
    """Whether one ranking's recall is above another's by more than two standard errors, taken as independent."""
    return first.recall - second.recall > CERTAIN * math.hypot(first.error, second.error)


def _balance(facts: CatalogFacts) -> Iterator[Advice]:
    """Few users have most interactions, and what they do says little about the others."""
    if facts.busy.share < BUSY_SHARE:
        return
    because = f"{facts.busy.count:,} busy users have {facts.busy.share:.0%} of the train interactions"
    if facts.validation is not None:
        found = facts.validation.rankings
        without = max((found[CO_OCCURRENCE_OTHERS], found[CO_OCCURRENCE_BALANCED]), key=lambda ranking: ranking.recall)
        if not is_clearly_above(without, found[CO_OCCURRENCE]):
            return
        because += f", and counts that weigh them less rank at {without.recall:.4f} in place of {found[CO_OCCURRENCE].recall:.4f}"
    for section in ("teacher", "student"):
        yield Advice(f"{section}.user_balance", 0.5, f"{because}; a loss over interactions would be these users' loss.")
        yield Advice(
            f"{section}.l2",
            0.007,
            f"{section}.user_balance makes the interactions of users with one to three items louder, and these overfit at the default.",
        )


def _whitening(facts: CatalogFacts) -> Iterator[Advice]:
    """A reduction of features with few loud directions sees little else."""
    loud = {name: m for name, m in facts.modalities.items() if 0 < m.effective_dim < LOUD_DIM * m.dim}
    if loud:
        counts = ", ".join(f"{modality.effective_dim:.0f} of {modality.dim:,} ({name})" for name, modality in loud.items())
        yield Advice(
            "teacher.whiten",
            True,
            f"A few directions hold most of the features' variance; effective dimensions: {counts}. Whitened, all directions count alike.",
        )


def _cold_items(facts: CatalogFacts) -> Iterator[Advice]:
    """Items without train interactions can be found by their own features alone."""
    validation = facts.validation
    if validation is None or validation.cold_share < COLD_SHARE:
        return
    names = [content(modality, whiten) for modality in facts.modalities for whiten in (False, True)]
    told = [auc for auc in (validation.rankings[name].auc_cold for name in names) if auc is not None]
    if told and max(told) >= COLD_AUC:
        yield Advice(
            "teacher.modality_layers",
            0,
            f"{validation.cold_share:.1%} of the validation items have no train interaction. Features tell them from others (AUC "
            f"{max(told):.2f}), but after a round of propagation such an item has no vector; without one it keeps its own.",
        )
