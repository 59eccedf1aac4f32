"""Adds up the scores of several teachers, with weights that validation chooses (docs/method.md 7.2).

A component's scores are divided by their standard deviation over all items, user by user, so that a weight means the same for every
component and every user. What a user's scores have in common does not change a ranking and is left in.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from .graph import Csr
from .metric_names import split_metric
from .metrics import of_each_user
from .sampling import epoch_order
from .statistics import mean_difference
from .top_k import top_k_of_scores

PLACES = 12  # that a half of the users gives to components, one after the other; a component may have several
SPLITS = 3  # of the users into halves, each of which chooses weights
LEAST_WEIGHT = 0.02  # a component of less is not worth its place in the sum
CACHE_BYTES = 1 << 30  # of the components' scores for the users that the weights are chosen on
DEPTH = 200  # best items of every component that are kept where not all scores are; at least ten times as many as lists have places
BLOCK_SCORES = 1 << 22  # scores of a component, or weighted sums, that are ranked at a time
NUM_GROUPS = 3


@dataclass(frozen=True)
class ChoiceSize:
    """Says how much of the components' scores is kept to choose weights with, within `CACHE_BYTES`.

    Attributes:
        users: The largest number of users that choose.
        depth: Best unseen items of each component that are kept for a user; the number of items where all scores are.
        bytes: Of the scores and, where not all are kept, of the items' indices.
    """

    users: int
    depth: int
    bytes: int

    @staticmethod
    def of(num_users: int, num_items: int, num_components: int, metric: str) -> "ChoiceSize":
        """Returns the size for a number of users with held-out items: all scores of all of them where there is room, else the best
        `DEPTH` items of every component, and then fewer users where even that is too much."""
        every = 4 * num_components * num_items
        depth = num_items if num_users * every <= CACHE_BYTES else min(num_items, max(DEPTH, 10 * split_metric(metric)[1]))
        # of every item that may be among some component's best ones, its scores and its index
        of_user = every if depth == num_items else 4 * (num_components + 1) * min(num_items, depth * num_components)
        users = min(num_users, max(1, CACHE_BYTES // of_user))
        return ChoiceSize(users, depth, users * of_user)


def sample_users(held_out: Csr, most: int) -> Tensor:
    """Returns the users that weights are chosen on, int64 ascending: those with a held-out item, or `most` evenly spaced ones of them."""
    users = held_out.degrees.nonzero().squeeze(1)
    return users if users.numel() <= most else users[torch.arange(most) * users.numel() // most]


@dataclass(frozen=True)
class Mixture:
    """Holds the components' scores for some users, from which every weighted sum is ranked.

    Attributes:
        scores: float32 [n, width] by component, in units of each user's standard deviation; -inf for masked items and where a row ends.
        columns: The items that the scores are of, int32 [n, width], ascending in each row, -1 where a row ends; None where the scores are
            of all items.
        held_out: Validation items of these users, n rows.
        metric: The validation metric, such as "recall@20".
    """

    scores: Mapping[str, Tensor]
    columns: Tensor | None
    held_out: Csr
    metric: str

    @staticmethod
    def gather(
        scorers: Mapping[str, Callable[[Tensor], Tensor]], held_out: Csr, exclude: Csr, metric: str, depth: int | None = None
    ) -> "Mixture":
        """Computes the scores, a block of users at a time, and keeps those of every item that is among any component's best unseen ones.

        A weighted sum of what is kept ranks as that of all scores does wherever the last place of its list is above the sum of what the
        components have at `depth`, which no other item can pass.

        Args:
            scorers: By component, from rows of `held_out`, int64 [m], to float32 [m, num_items].
            held_out, exclude: Validation items and masked items of the users, n rows.
            metric: The validation metric.
            depth: Best unseen items of each component that are kept; None, or at least the number of items: all scores.
        """
        num_users, num_items = held_out.num_rows, held_out.num_columns
        depth = num_items if depth is None else min(depth, num_items)
        whole, width = depth == num_items, min(num_items, depth * len(scorers))
        scores = {name: torch.full((num_users, width), -torch.inf) for name in scorers}
        columns, widest = None if whole else torch.full((num_users, width), -1, dtype=torch.int32), 0
        for rows in torch.arange(num_users).split(max(1, BLOCK_SCORES // num_items)):
            excluded = exclude.select(rows)
            blocks = {name: scorer(rows) for name, scorer in scorers.items()}
            for block in blocks.values():
                block[excluded.rows, excluded.columns] = -torch.inf
            if columns is None:
                for name, block in blocks.items():
                    scores[name][rows] = block
                continue
            kept = torch.zeros(rows.numel(), num_items, dtype=torch.bool)
            for block in blocks.values():
                kept.scatter_(1, top_k_of_scores(block, depth)[1], True)
            kept[excluded.rows, excluded.columns] = False  # where fewer items are unseen
            sizes = kept.sum(1)
            users, items = kept.nonzero(as_tuple=True)
            places = torch.arange(items.numel()) - (sizes.cumsum(0) - sizes)[users]
            columns[rows[users], places] = items.int()
            for name, block in blocks.items():
                scores[name][rows[users], places] = block[users, items]
            widest = max(widest, int(sizes.max()))
        if columns is not None:
            columns, scores = columns[:, :widest], {name: each[:, :widest] for name, each in scores.items()}
        return Mixture(scores, columns, held_out, metric)

    def of_users(self, rows: Tensor) -> "Mixture":
        """Returns the mixture of some of the users, int64 [n] rows."""
        scores, columns = {name: each[rows] for name, each in self.scores.items()}, None if self.columns is None else self.columns[rows]
        return Mixture(scores, columns, self.held_out.select(rows), self.metric)

    def merged(self, alike: Sequence[Sequence[str]]) -> "Mixture":
        """Returns the mixture with the mean of each group's scores in the place of its components, by the name of the first of them."""
        scores = dict(self.scores)
        for group in alike:
            members = [scores.pop(name) for name in group]
            scores[group[0]] = torch.stack(members).mean(0)
        return Mixture({name: scores[name] for name in self.scores if name in scores}, self.columns, self.held_out, self.metric)

    def lists(self, weights: Mapping[str, float]) -> Tensor:
        """Returns the best items of every user by a weighted sum, int64 [n, k]; -1 where no item is left."""
        num_users, width = next(iter(self.scores.values())).shape
        size, k, found = max(1, BLOCK_SCORES // width), split_metric(self.metric)[1], []
        for start in range(0, num_users, size):
            rows = slice(start, min(start + size, num_users))
            total: Tensor | None = None
            for name, weight in weights.items():
                if weight:
                    total = weight * self.scores[name][rows] if total is None else total.add_(self.scores[name][rows], alpha=weight)
            assert total is not None, "a weight is more than 0"
            values, places = top_k_of_scores(total, min(k, width))
            items = places if self.columns is None else self.columns[rows].gather(1, places).long()
            found.append(torch.where(values == -torch.inf, -1, items))
        return torch.cat(found)

    def values(self, lists: Tensor) -> Tensor:
        """Returns the metric of each user's list, float64 [n], from the lists, int64 [n, k]."""
        at, hits = self._places(lists), torch.zeros(lists.shape, dtype=torch.bool)
        hits[self.held_out.rows.repeat_interleave(at.sum(1)), at.nonzero()[:, 1]] = True
        return of_each_user(split_metric(self.metric)[0], hits, self.held_out.degrees)

    def found(self, lists: Tensor) -> Tensor:
        """Returns for every held-out pair whether the list of its user holds the item, float64 [num_pairs]."""
        return self._places(lists).any(1).double()

    def _places(self, lists: Tensor) -> Tensor:
        """Returns for every held-out pair the places of the user's list that hold the item, bool [num_pairs, k]."""
        return lists[self.held_out.rows] == self.held_out.columns[:, None]


@dataclass(frozen=True)
class Weights:
    """Holds chosen weights.

    Attributes:
        by_name: Weight of every component; they add up to 1.
        value: The validation metric of the sum, on the users that chose.
        trials: How many weighted sums were ranked.
    """

    by_name: dict[str, float]
    value: float
    trials: int


def choose_weights(mixture: Mixture, alike: Sequence[Sequence[str]] = ()) -> Weights:
    """Chooses weights by bagged ensemble selection, and returns the mean of what halves of the users choose, `SPLITS` times.

    Args:
        mixture: The scores.
        alike: Names of components that differ by their seed alone, in groups of two or more. They weigh the same, as one component whose
            scores are their mean: what validation finds of a difference between them is luck.

    Source: Caruana, Niculescu-Mizil, Crew, Ksikes, "Ensemble selection from libraries of models" (ICML 2004). One choice on all users
    follows what is luck in their few held-out items; a component is in the mean as often as a half finds it useful. A mean weight below
    `LEAST_WEIGHT` is 0. Where the best single component ranks better than the mean by more than a standard error, it stands alone.
    """
    members = {group[0]: group for group in alike}
    mixture = mixture.merged(alike)
    names, num_users = list(mixture.scores), mixture.held_out.num_rows
    singles = {name: mixture.values(mixture.lists({name: 1.0})) for name in names}
    trials, found = len(names), []
    for split in range(SPLITS):
        order = epoch_order(num_users, 0, split)
        for half in (order[: num_users // 2], order[num_users // 2 :]):
            if half.numel():
                chosen, tried = _select(mixture.of_users(half.sort().values))
                found.append(chosen)
                trials += tried
    mean = {name: sum(chosen[name] for chosen in found) / len(found) for name in names}
    least = min(LEAST_WEIGHT, max(mean.values()))
    kept = {name: weight if weight >= least else 0.0 for name, weight in mean.items()}
    weights = {name: weight / sum(kept.values()) for name, weight in kept.items()}
    values, best = mixture.values(mixture.lists(weights)), max(names, key=lambda name: float(singles[name].mean()))
    gain, error = mean_difference(singles[best].numpy(), values.numpy())
    if gain > error:
        weights, values = {name: float(name == best) for name in names}, singles[best]
    of_members = {name: weights[first] / len(group) for first, group in members.items() for name in group}
    return Weights({**weights, **of_members}, float(values.mean()), trials + 1)


def _select(mixture: Mixture) -> tuple[dict[str, float], int]:
    """Gives `PLACES` to components, one after the other, each to the one with which the sum ranks best, and keeps the best sum on the way.

    The first place is the best single component's. A component's weight is its share of the places.

    Returns:
        The weights, which add up to 1, and the number of weighted sums that were ranked.
    """
    names = list(mixture.scores)
    places = dict.fromkeys(names, 0)
    best, best_value = dict(places), -math.inf
    for _ in range(PLACES):
        values = {name: float(mixture.values(mixture.lists({**places, name: places[name] + 1})).mean()) for name in names}
        chosen = max(names, key=lambda name: values[name])
        places[chosen] += 1
        if values[chosen] > best_value:
            best, best_value = dict(places), values[chosen]
    return {name: count / sum(best.values()) for name, count in best.items()}, PLACES * len(names)


def contributions(mixture: Mixture, weights: Mapping[str, float], activity: Tensor, popularity: Tensor) -> dict[str, dict[str, object]]:
    """Measures what each component brings, for the run's report.

    Args:
        mixture: The scores.
        weights: The chosen weights.
        activity: int64 [n], how many train items each of the mixture's users has.
        popularity: int64 [num_items], how many train interactions each item has.

    Returns:
        By component `weight`; `alone`, the metric of the component by itself; and where it has a weight beside others `without`, the metric
        of the others; `gain_by_users`, what it adds for the third of the users with the fewest train items, for the next third and for the
        last; and `gain_by_items`, how many more of the held-out items are found, as a share, among the least popular third of them, the
        next and the last.
    """
    names = list(mixture.scores)
    lists = mixture.lists(weights)
    whole, whole_found = mixture.values(lists), mixture.found(lists)
    popularity = popularity[mixture.held_out.columns]
    facts: dict[str, dict[str, object]] = {}
    for name in names:
        alone = float(mixture.values(mixture.lists({other: float(other == name) for other in names})).mean())
        facts[name] = {"weight": weights[name], "alone": alone}
        others = {**weights, name: 0.0}
        if weights[name] and any(others.values()):
            lists = mixture.lists(others)
            without = mixture.values(lists)
            facts[name]["without"] = float(without.mean())
            facts[name]["gain_by_users"] = _by_thirds(activity, whole - without)
            facts[name]["gain_by_items"] = _by_thirds(popularity, whole_found - mixture.found(lists))
    return facts


def _by_thirds(order: Tensor, values: Tensor) -> list[float]:
    """Returns the mean of the values in each third of the entries, by ascending `order`."""
    chunks = torch.argsort(order, stable=True).chunk(NUM_GROUPS)
    return [float(values[chunk].mean()) for chunk in chunks]
