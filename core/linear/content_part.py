"""Adds a content score to the scores of a linear model, user by user in units of their standard deviation (docs/method.md 7.1)."""

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from ..errors import InputError
from .adjacency import Interactions
from .config import CONTENT, LinearConfig
from .content_scores import WEIGHTS, ContentScores, content_bytes
from .factors import scaled_by_user
from .search import Choice, Settings

Vectors = Callable[[Settings], tuple[Tensor, Tensor]]
WEIGHT = CONTENT[0]


class ContentPart:
    """Computes z_u(linear) + w z_u(content), where z_u divides a user's scores by their standard deviation over all items.

    What a user's scores have in common does not change a ranking and is left in. Both parts of the last settings are kept, so that a trial
    with another weight costs no more than a sum and a ranking. w is `content_weight`; the content score is that of `ContentScores`.

    Args:
        interactions: The train interactions.
        features: Standardised features of all items by modality, float32 [num_items, d_m].
        config: The settings.

    Raises:
        InputError: there are no features, or the settings name a modality that there is not.
    """

    def __init__(self, interactions: Interactions, features: Mapping[str, Tensor], config: LinearConfig) -> None:
        if not features:
            raise InputError(
                f"teacher.linear.content_weight={_in_words(config.content_weight)} adds a content score, and the catalog has no modality; "
                "set teacher.linear.content_weight=0, or name feature files in source.modalities"
            )
        self.config, self.scores = config, ContentScores(interactions, features, config)
        self._kept: dict[str, tuple[Settings, tuple[Tensor, Tensor]]] = {}

    def choices(self) -> dict[str, Choice]:
        """Returns the settings of the content part that may be chosen, by name."""
        return {WEIGHT: Choice(0.2, (0.0, 0.05, 0.1, 0.2, 0.3, 0.5, 1.0, 2.0)), **self.scores.choices()}

    def given(self) -> Settings:
        """Returns the settings of the content part that have a value, by name."""
        weight = self.config.content_weight
        return {**({} if weight is None else {WEIGHT: weight}), **self.scores.given()}

    def split(self, settings: Settings) -> tuple[Settings, Settings]:
        """Returns the kind's own settings, and those of the content part that have a meaning: with the weight 0 the weight alone."""
        own, of_content = {}, {}
        for name, value in settings.items():
            if name not in CONTENT and not name.startswith(WEIGHTS):
                own[name] = value
            elif name == WEIGHT or settings[WEIGHT]:
                of_content[name] = value
        return own, of_content

    def settled(self, settings: Settings) -> Settings:
        """Returns settings under the names of `LinearConfig`'s fields."""
        return self.scores.settled(settings) if settings[WEIGHT] else settings

    def added_to(self, own_vectors: Vectors, settings: Settings) -> tuple[Tensor, Tensor]:
        """Computes the joined vectors of users and items.

        Args:
            own_vectors: Computes the linear model's vectors from its own settings, with scores of standard deviation 1 by user.
            settings: Of both.

        Returns:
            float32 [num_users, n] and [num_items, n]; a user's scores have the standard deviation 1 over all items.
        """
        own, of_content = self.split(settings)
        users, items = self._last("own", own, own_vectors)
        weight = of_content.pop(WEIGHT)
        if not weight:
            return users, items
        content_users, content_items = self._last("content", of_content, self._content_vectors)
        joined_users, joined_items = torch.cat([users, weight * content_users], 1), torch.cat([items, content_items], 1)
        return scaled_by_user(joined_users, joined_items), joined_items

    def _content_vectors(self, settings: Settings) -> tuple[Tensor, Tensor]:
        users, items = self.scores.vectors(settings)
        return scaled_by_user(users, items), items

    def _last(self, part: str, settings: Settings, vectors: Vectors) -> tuple[Tensor, Tensor]:
        """Returns the vectors of a part, computed where its settings differ from the last ones."""
        if part not in self._kept or self._kept[part][0] != settings:
            self._kept.pop(part, None)  # its memory is free while the next ones are made
            self._kept[part] = settings, vectors(settings)
        return self._kept[part][1]


def added_bytes(num_users: int, num_items: int, own_columns: int, dims: Mapping[str, int]) -> int:
    """Returns the bytes of an added content score: its own, the linear model's vectors that are kept, and the joined ones while scaled.

    Args:
        num_users, num_items: Of the catalog.
        own_columns: Columns of the linear model's vectors.
        dims: d_m by modality.
    """
    joined = own_columns + sum(dims.values())
    scaling = 2 * 4 * num_users * joined + (4 + 2 * 8) * num_items * joined + 2 * 8 * joined**2
    return content_bytes(num_users, num_items, dims) + 4 * (num_users + num_items) * own_columns + scaling


def _in_words(weight: float | None) -> str:
    return "null" if weight is None else f"{weight}"
