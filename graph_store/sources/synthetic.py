"""A generated catalog of any size with clustered tastes, popularity by a power law, and content that tells about taste.

Users and items have latent vectors t_u, t_i around the centres m_c of clusters. User u picks item i, the r-th most popular of its cluster,
with probability proportional to

    exp(taste * cos(t_u, t_i)) * r ** -popularity

without replacement, by importance resampling: of a few proposals from exp(taste * cos(t_u, m_c)) * r ** -popularity, which need no sum
over the items, one is taken with weights exp(taste * (cos(t_u, t_i) - cos(t_u, m_c))). A pick costs the same whatever the catalog's size.
Modalities are noisy linear maps of the item's latent vector; where there are three or more, the last is pure noise. They come at
different raw scales, as extracted features do. Many items have few interactions, so content helps.

Everything is made in blocks of users and items, each from a generator of its own, so a catalog needs a few bytes of memory an item.
"""

from collections.abc import Iterator

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from ..catalog import CHUNK_ROWS, Catalog, Unsplit
from ..config import SourceConfig
from ..external import Spool, scratch
from .kinds import Source

_LATENT_DIM = 16
_SPREAD = 0.5 / np.sqrt(_LATENT_DIM)  # of latent vectors around their centre
USER_BLOCK = 8192
_PROPOSALS = 4
_ROUNDS = 20  # of draws until a user has enough distinct items
_SIGMA = 0.7  # of the log of a user's number of interactions
_DIMS = {"visual": 128, "textual": 96, "acoustic": 64}
_SCALES = (4.0, 0.1, 30.0)
_MODEL, _ITEMS, _USERS, _FEATURES = range(4)  # streams of random numbers


class Synthetic:
    """The catalog that `config.synthetic_*` and `config.seed` describe.

    Attributes:
        dims: Modality name -> dimension.
    """

    def __init__(self, config: SourceConfig) -> None:
        self.config, self.num_users, self.num_items = config, config.synthetic_num_users, config.synthetic_num_items
        self.dims = {} if config.modalities == {} else config.synthetic_dims or _DIMS
        rng = self._rng(_MODEL)
        clusters = min(config.synthetic_num_clusters, self.num_items)
        self._centres = _unit(rng.standard_normal((clusters, _LATENT_DIM)))
        sizes = rng.multinomial(self.num_items - clusters, np.full(clusters, 1 / clusters)) + 1
        self._ends = np.cumsum(sizes)
        self._starts, self._sizes = self._ends - sizes, sizes
        # A cluster's items by popularity are the items of its slots, in order.
        self._item_of_slot = rng.permutation(self.num_items).astype(np.int32)
        slot_of_item = np.empty(self.num_items, np.int32)
        slot_of_item[self._item_of_slot] = np.arange(self.num_items, dtype=np.int32)
        self._latents = scratch(np.float32, self.num_items, _LATENT_DIM)
        for start, stop in blocks(self.num_items, CHUNK_ROWS):
            cluster = np.searchsorted(self._ends, slot_of_item[start:stop], side="right")
            noise = self._rng(_ITEMS, start).standard_normal((stop - start, _LATENT_DIM))
            self._latents[start:stop] = _unit(self._centres[cluster] + _SPREAD * noise)

    def interactions(self) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Draws the interactions, a block of users at a time.

        Yields:
            Distinct pairs: users and items, int64 [n] each, ascending by user, then item.
        """
        for start, stop in blocks(self.num_users, USER_BLOCK):
            rng, config = self._rng(_USERS, start), self.config
            latents = self._user_latents(rng, stop - start)
            mean = np.log(config.synthetic_interactions_per_user) - _SIGMA**2 / 2
            wanted = np.clip(np.rint(rng.lognormal(mean, _SIGMA, stop - start)), 1, self.num_items // 2).astype(np.int64)
            kept = np.zeros(0, np.int64)  # keys of distinct pairs
            for _ in range(_ROUNDS):
                missing = wanted - np.bincount(kept // self.num_items, minlength=stop - start)
                if not missing.any():
                    break
                users = np.repeat(np.arange(stop - start), np.where(missing > 0, missing + missing // 4 + 1, 0))
                keys = users * np.int64(self.num_items) + self._draw(rng, latents, users)
                distinct, first = np.unique(keys, return_index=True)
                new = ~np.isin(distinct, kept, assume_unique=True)
                distinct = distinct[new][np.argsort(first[new])]  # in the order they were drawn, so ascending by user
                owners = distinct // self.num_items
                counts = np.bincount(owners, minlength=stop - start)
                rank = np.arange(len(owners)) - np.repeat(np.cumsum(counts) - counts, counts)
                kept = np.concatenate([kept, distinct[rank < missing[owners]]])
            users, items = np.divmod(np.sort(kept), np.int64(self.num_items))
            yield users + start, items

    def features(self, modality: str) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Makes a modality's features, a block of `CHUNK_ROWS` items at a time.

        Yields:
            Rows [n, dim] float16, zeros where missing, and present [n] bool.
        """
        number, dim = list(self.dims).index(modality), self.dims[modality]
        informative, scale = number < 2 or number + 1 < len(self.dims), _SCALES[number % len(_SCALES)]
        rng = self._rng(_FEATURES, number)
        signal_map, offset = rng.standard_normal((_LATENT_DIM, dim), np.float32), rng.standard_normal(dim, np.float32)
        for start, stop in blocks(self.num_items, CHUNK_ROWS):
            rng = self._rng(_FEATURES, number, start)
            rows = rng.standard_normal((stop - start, dim), np.float32)
            if informative:  # the signal has unit variance: the latents have unit length
                rows = self._latents[start:stop] @ signal_map + np.float32(self.config.synthetic_noise) * rows
            present = rng.random(stop - start) >= self.config.synthetic_missing
            yield np.where(present[:, None], scale * (rows + offset), 0).astype(np.float16), present  # raw features are not centred

    def _rng(self, *keys: int) -> np.random.Generator:
        return np.random.default_rng([self.config.seed, 0x70726F6D, *keys])

    def _user_latents(self, rng: np.random.Generator, count: int) -> np.ndarray:
        """Unit vectors [count, _LATENT_DIM]; a user mixes two clusters."""
        first, second = rng.integers(len(self._centres), size=(2, count))
        share = rng.uniform(0.5, 1.0, (count, 1))
        mixed = _unit(share * self._centres[first] + (1 - share) * self._centres[second])
        return _unit(mixed + _SPREAD * rng.standard_normal(mixed.shape))

    def _draw(self, rng: np.random.Generator, latents: np.ndarray, users: np.ndarray) -> np.ndarray:
        """One item for every entry of `users` (rows of `latents`, ascending), int64."""
        config, power = self.config, 1 - self.config.synthetic_popularity
        near = config.synthetic_taste * (latents @ self._centres.T)
        mass = np.log1p(self._sizes) if power == 0 else ((self._sizes + 1.0) ** power - 1) / power
        chances = np.exp(near - near.max(1, keepdims=True)).astype(np.float64) * mass
        chances /= chances.sum(1, keepdims=True)
        steps = (np.cumsum(chances, 1) + np.arange(len(latents))[:, None]).ravel()  # one ascending array: row r lies in (r, r + 1]
        rows = np.repeat(users, _PROPOSALS)
        cluster = np.searchsorted(steps, rng.random(len(rows)) + rows, side="right") - rows * len(self._centres)
        cluster = np.clip(cluster, 0, len(self._centres) - 1)
        most, share = self._sizes[cluster] + 1.0, rng.random(len(rows))
        # The inverse of the distribution function of a density r ** -popularity on [1, size + 1)
        place = most**share if power == 0 else (1 + share * (most**power - 1)) ** (1 / power)
        slots = self._starts[cluster] + np.clip(place.astype(np.int64) - 1, 0, self._sizes[cluster] - 1)
        items = self._item_of_slot[slots]
        closer = config.synthetic_taste * np.einsum("nd,nd->n", latents[rows], self._latents[items]) - near[rows, cluster]
        # The largest of log-weight plus Gumbel noise is a draw with those weights.
        best = (closer - np.log(rng.standard_exponential(len(rows)))).reshape(-1, _PROPOSALS).argmax(1)
        return items.reshape(-1, _PROPOSALS)[np.arange(len(users)), best].astype(np.int64)


def load(config: SourceConfig) -> Catalog:
    """Generates the catalog; interactions and features lie in scratch files."""
    made, users, items = Synthetic(config), Spool(np.int32), Spool(np.int32)
    for some_users, some_items in made.interactions():
        users.append(some_users)
        items.append(some_items)
    features = {}
    for modality, dim in made.dims.items():
        rows, present = scratch(np.float16, made.num_items, dim), np.zeros(made.num_items, bool)
        for (start, stop), (some_rows, some_present) in zip(blocks(made.num_items, CHUNK_ROWS), made.features(modality)):
            rows[start:stop], present[start:stop] = some_rows, some_present
        features[modality] = (rows, present)
    return Catalog(
        raw_ids("u", 0, made.num_users), raw_ids("i", 0, made.num_items), Unsplit((users.array(), items.array()), config), features
    )


SOURCE = Source(load, needs_path=False, own_modalities=True, has_times=False)


def blocks(count: int, size: int) -> Iterator[tuple[int, int]]:
    """Cuts 0..count into runs [start, stop) of `size`, the last one shorter."""
    return ((start, min(start + size, count)) for start in range(0, count, size))


def raw_ids(letter: str, start: int, stop: int) -> pa.Array:
    """Makes the raw ids of users or items [start, stop), such as u17."""
    return raw_names(letter, np.arange(start, stop))


def raw_names(letter: str, numbers: np.ndarray) -> pa.Array:
    """Makes the raw ids of some users or items, such as u17, from their numbers."""
    return pc.binary_join_element_wise(letter, pa.array(numbers).cast(pa.string()), "")


def _unit(vectors: np.ndarray) -> np.ndarray:
    return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)
