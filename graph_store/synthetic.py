"""A generated catalog with clustered tastes, popularity by a power law, and content that tells about taste.

Users and items have latent vectors t_u, t_i around the centres of clusters. User u picks item i with probability
proportional to

    exp(taste * cos(t_u, t_i)) * rank_i ** -popularity

without replacement. Two modalities are noisy linear maps of the item's latent vector, one is pure noise; they come at
different raw scales, as extracted features do. Many items have few interactions, so content helps.
"""

import numpy as np

from .catalog import Catalog
from .config import SourceConfig
from .splits import split_interactions

_LATENT_DIM = 16
_USER_BLOCK = 1024  # users whose preferences are in memory at a time: [1024, num_items] float32
_MODALITIES = {
    "visual": (128, 4.0, True),
    "textual": (96, 0.1, True),
    "acoustic": (64, 30.0, False),
}  # dim, scale, informative


def synthetic_catalog(config: SourceConfig) -> Catalog:
    """Generates the catalog that `config.synthetic_*` and `config.seed` describe."""
    rng = np.random.default_rng([config.seed, 0x70726F6D])
    user_latents, item_latents = _latents(rng, config)
    users, items = _interactions(rng, config, user_latents, item_latents)
    modalities = _MODALITIES if config.modalities is None else {}
    return Catalog(
        [f"u{user}" for user in range(config.synthetic_num_users)],
        [f"i{item}" for item in range(config.synthetic_num_items)],
        split_interactions(users, items, config),
        {name: _features(rng, item_latents, *kind, config) for name, kind in modalities.items()},
    )


def _unit(vectors: np.ndarray) -> np.ndarray:
    return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)


def _latents(rng: np.random.Generator, config: SourceConfig) -> tuple[np.ndarray, np.ndarray]:
    """Unit vectors [num_users, _LATENT_DIM] and [num_items, _LATENT_DIM]; a user mixes two clusters."""
    clusters, num_users, num_items = (
        config.synthetic_num_clusters,
        config.synthetic_num_users,
        config.synthetic_num_items,
    )
    centres = _unit(rng.standard_normal((clusters, _LATENT_DIM)))
    first, second = rng.integers(clusters, size=(2, num_users))
    share = rng.uniform(0.5, 1.0, (num_users, 1))
    spread = 0.5 / np.sqrt(_LATENT_DIM)
    users = share * centres[first] + (1 - share) * centres[second]
    items = centres[rng.integers(clusters, size=num_items)]
    return tuple(_unit(side + spread * rng.standard_normal(side.shape)) for side in (users, items))  # type: ignore[return-value]


def _interactions(
    rng: np.random.Generator, config: SourceConfig, user_latents: np.ndarray, item_latents: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Draws every user's items without replacement (Gumbel top-k); how many is log-normal, so some users have few."""
    num_users, num_items = len(user_latents), len(item_latents)
    popularity = -config.synthetic_popularity * np.log1p(rng.permutation(num_items)).astype(np.float32)
    sigma = 0.7
    counts = rng.lognormal(np.log(config.synthetic_interactions_per_user) - sigma**2 / 2, sigma, num_users)
    counts = np.clip(np.rint(counts), 1, num_items // 2).astype(np.int64)
    users, items = [], []
    for start in range(0, num_users, _USER_BLOCK):
        stop = min(start + _USER_BLOCK, num_users)
        logits = config.synthetic_taste * (user_latents[start:stop] @ item_latents.T) + popularity
        logits += rng.gumbel(size=logits.shape).astype(np.float32)
        most = int(counts[start:stop].max())
        best = np.argpartition(-logits, most, axis=1)[:, :most]
        best = np.take_along_axis(best, np.argsort(-np.take_along_axis(logits, best, 1), axis=1, kind="stable"), 1)
        taken = np.arange(most) < counts[start:stop, None]
        users.append(np.nonzero(taken)[0] + start)
        items.append(best[taken].astype(np.int64))
    return np.concatenate(users), np.concatenate(items)


def _features(
    rng: np.random.Generator, item_latents: np.ndarray, dim: int, scale: float, informative: bool, config: SourceConfig
) -> tuple[np.ndarray, np.ndarray]:
    """Rows [num_items, dim] float16 and present [num_items]."""
    num_items = len(item_latents)
    rows = rng.standard_normal((num_items, dim))
    if informative:
        signal = item_latents @ rng.standard_normal((_LATENT_DIM, dim))  # unit variance: the latents have unit length
        rows = signal + config.synthetic_noise * rows
    offset = rng.standard_normal(dim)  # raw features are not centred
    present = rng.random(num_items) >= config.synthetic_missing
    return np.where(present[:, None], scale * (rows + offset), 0).astype(np.float16), present
