"""The numbers of an experiment's report, from its finished cells: means over seeds, paired tests over users, transferability, curves."""

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ...core.ranking import metric_of_users
from ...core.statistics import bootstrap_interval, holm, mean_and_deviation, mean_interval, sign_flip_p, transferability
from ...core.storage import join, read_json
from ...graph_store.dataset import Dataset
from .cells import TEST, read_cell
from .models import Model, Models
from .testing import CURVE, read_places

COSTS = ("num_parameters", "serving_bytes", "seconds_per_epoch", "ranking_seconds", "best_epoch", "epochs")
POPULARITY = 4  # groups of the items that train has, beside those that it has not


@dataclass(frozen=True)
class Outcome:
    """What the cells of one model found.

    Attributes:
        model: The model.
        records: Their cell.json, by seed.
        tests: Their test.json.
        places: Of the test items, int64 [num_seeds, num_pairs] (see `held_out_places`).
        rows: The user of every pair, from 0, int64 [num_pairs].
        degrees: Test items of each of these users, int64 [num_users].
    """

    model: Model
    records: list[dict]
    tests: list[dict]
    places: Tensor
    rows: Tensor
    degrees: Tensor

    def of_users(self, metric: str) -> np.ndarray:
        """A metric of every user by seed, float64 [num_seeds, num_users]."""
        name, _, k = metric.partition("@")
        return np.stack([metric_of_users(name, int(k), places, self.rows, self.degrees).numpy() for places in self.places])

    @cached_property
    def depth(self) -> int:
        """Length of the ranked lists."""
        return self.tests[0]["depth"]

    def summary(self, metric: str) -> dict:
        """Means over seeds of everything that a cell found; of a teacher's modalities the metric alone."""
        validation = {name: _over_seeds([r["validation"][name] for r in self.records]) for name in self.records[0]["validation"]}
        test = {name: _over_seeds([t["metrics"][name] for t in self.tests]) for name in self.tests[0]["metrics"]}
        modalities = {m: _over_seeds([record["modalities"][m][metric] for record in self.records]) for m in self.records[0]["modalities"]}
        costs = {name: _over_seeds([record[name] for record in self.records]) for name in COSTS}
        facts = {"role": self.model.role, "stage": self.model.stage, "teacher": self.model.teacher, "of": self.model.of}
        return {**facts, "validation": validation, "test": test, "modalities": modalities, **costs}


def _over_seeds(values: list[float]) -> dict:
    mean, deviation = mean_and_deviation(values)
    return {"mean": mean, "deviation": deviation, "by_seed": values}


def collect(models: Models, dataset: Dataset, searches: dict[str, dict], added: list[str]) -> dict:
    """All numbers of the report, as JSON-able values.

    Args:
        models: Every cell of theirs is finished and tested.
        dataset: The experiment's, with its test split.
        searches: What searches found, by model (see `choose`).
        added: Models that were added when test figures were known.
    """
    config, metric = models.recipe.config, models.recipe.metric
    outcomes = {name: _outcome(models, name) for name in models.by_name}
    facts = {key: dataset.manifest[key] for key in ("num_users", "num_items", "num_interactions", "modalities")}
    transfer = config.compare.transferability
    return {
        "experiment": models.recipe.name,
        "metric": metric,
        "seeds": config.seeds,
        "threads": models.recipe.base.cluster.threads or 1,
        "list_length": max(models.recipe.base.evaluation.cutoffs),
        "dataset": {**facts, "digest": dataset.digest, "test_users": len(outcomes[next(iter(outcomes))].degrees)},
        "models": {name: {**o.summary(metric), "search": searches.get(name), "added": name in added} for name, o in outcomes.items()},
        "comparisons": _comparisons(models, outcomes, metric),
        "transferability": None if transfer is None else _transferability(outcomes, vars(transfer), metric),
        "ablations": _against_their_models(models.of_role("ablation"), outcomes, metric),
        "sweeps": {name: [m.name for m in models.of_role("sweep") if m.point and m.point[0] == name] for name in config.sweeps},
        "popularity": _popularity(models, outcomes, dataset, metric),
    }


def _outcome(models: Models, name: str) -> Outcome:
    urls = [models.cell_url(name, seed) for seed in models.recipe.config.seeds]
    arrays = [read_places(url) for url in urls]
    _, rows, degrees = arrays[0]["user"].unique(return_inverse=True, return_counts=True)
    tests = [read_json(join(url, "test.json")) for url in urls]
    records = [read_cell(url) or {} for url in urls]
    return Outcome(models[name], records, tests, torch.stack([a["place"] for a in arrays]), rows, degrees)


def compare(first: np.ndarray, second: np.ndarray) -> dict:
    """first - second, paired over users.

    Args:
        first, second: A metric of every user, float64 [num_users], averaged over the seeds.
    """
    from scipy.stats import ttest_rel

    differences = first - second
    same = not np.any(differences)
    low, high = mean_interval(differences)
    return {
        "difference": float(differences.mean()),
        "low": low,
        "high": high,
        "p_t": 1.0 if same or len(differences) < 2 else float(ttest_rel(first, second).pvalue),
        "p_sign_flip": sign_flip_p(differences),
    }


def _compared(pairs: list[tuple[str, str]], outcomes: dict[str, Outcome], metric: str) -> list[dict]:
    """Paired comparisons, with p-values of the t-test adjusted for their number."""
    found: list[dict[str, Any]] = []
    for first, second in pairs:
        users = [outcomes[name].of_users(metric).mean(0) for name in (first, second)]
        found.append({"first": first, "second": second, **compare(*users)})
    for row, adjusted in zip(found, holm([row["p_t"] for row in found])):
        row["p_holm"] = adjusted
    return found


def _comparisons(models: Models, outcomes: dict[str, Outcome], metric: str) -> list[dict]:
    """Every reference against every other model of the recipe."""
    names = [model.name for model in models.of_role("model")]
    references = models.recipe.config.compare.references or [n for n in names if models[n].teacher] or names[:1]
    pairs: list[tuple[str, str]] = []
    for reference in references:
        pairs += [(reference, name) for name in names if name != reference and (name, reference) not in pairs]
    return _compared(pairs, outcomes, metric)


def _against_their_models(ablations: list[Model], outcomes: dict[str, Outcome], metric: str) -> list[dict]:
    """Every ablation against the model that it changes."""
    return _compared([(model.name, model.of or "") for model in ablations], outcomes, metric)


def _transferability(outcomes: dict[str, Outcome], names: dict[str, str], metric: str) -> dict:
    """(student - undistilled) / (teacher - undistilled): of the means, with a bootstrap over users, and by seed."""
    by_seed = [outcomes[names[role]].of_users(metric) for role in ("student", "teacher", "undistilled")]
    means = [values.mean(1) for values in by_seed]  # [num_seeds] each
    value = float(transferability(*(np.array([m.mean()]) for m in means))[0])
    low, high = bootstrap_interval(np.stack([values.mean(0) for values in by_seed]), lambda m: transferability(*m))
    lead = (by_seed[1] - by_seed[2]).mean(0)
    lead_low, lead_high = mean_interval(lead)
    seeds = [float(v) if np.isfinite(v) else None for v in transferability(*means)]
    finite = [v for v in seeds if v is not None]
    return {
        **names,
        "value": value if np.isfinite(value) else None,
        "low": low if np.isfinite(low) else None,
        "high": high if np.isfinite(high) else None,
        "by_seed": seeds,
        "over_seeds": _over_seeds(finite) if finite else None,
        "teacher_lead": {"value": float(lead.mean()), "low": lead_low, "high": lead_high},
    }


def _popularity(models: Models, outcomes: dict[str, Outcome], dataset: Dataset, metric: str) -> dict:
    """Share of the test items that are found in lists of K, by how often train has them; the models of the recipe."""
    k = int(metric.partition("@")[2])
    popularity = np.bincount(dataset.csr("train").columns.numpy(), minlength=dataset.num_items)
    found = popularity[dataset.csr(TEST).columns.numpy()]
    known, edges = found[found > 0], np.empty(0, np.int64)
    if len(known):
        edges = np.unique(np.quantile(known, np.linspace(0, 1, POPULARITY + 1)[1:-1], method="higher"))
    groups: dict[str, np.ndarray] = {"0 (cold)": found == 0}
    low = 1
    for edge in edges:
        groups[f"{low}–{edge}" if low < edge else f"{edge}"] = (found >= low) & (found <= edge)
        low = int(edge) + 1
    groups[f"≥ {low}"] = found >= low
    groups = {name: inside for name, inside in groups.items() if inside.any()}
    shown = {}
    for model in models.of_role("model"):
        hits = (outcomes[model.name].places < k).double().numpy()  # [num_seeds, num_pairs]
        shown[model.name] = {name: _over_seeds(hits[:, inside].mean(1).tolist()) for name, inside in groups.items()}
    return {"k": k, "num_pairs": {name: int(inside.sum()) for name, inside in groups.items()}, "models": shown}


def lengths_of_curve(results: dict) -> list[int]:
    """List lengths that every model's lists reach."""
    first = next(iter(results["models"].values()))["test"]
    return [k for k in CURVE if f"recall@{k}" in first]
