"""The numbers of an experiment's report, from its cells: means over seeds, paired tests over users, transferability, curves."""

from dataclasses import asdict, dataclass
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from ...core.metric_names import split_metric
from ...core.metrics import metric_of_users
from ...core.statistics import bootstrap_interval, holm, mean_interval, sign_flip_p, transferability
from ...graph_store.dataset import Dataset
from .cells import TEST
from .config import TransferConfig
from .convergence import converged
from .document import Comparison, Convergence, ModelResults, Popularity, Results, Spread, Transferability, over_seeds
from .models import Model, Models
from .records import CellResult, SearchResult, TestRecord, read_cell, read_test
from .testing import CURVE, read_places

POPULARITY = 4  # groups of the items that train has, beside those that it has not


@dataclass(frozen=True)
class Outcome:
    """What training and testing the cells of one model gave.

    Attributes:
        model: The model.
        results: What training gave, by seed.
        tests: What testing gave, by seed.
        places: Of the test items, int64 [num_seeds, num_pairs] (see `held_out_places`).
        rows: The user of every pair, from 0, int64 [num_pairs].
        degrees: Test items of each of these users, int64 [num_users].
    """

    model: Model
    results: list[CellResult]
    tests: list[TestRecord]
    places: Tensor
    rows: Tensor
    degrees: Tensor

    def of_users(self, metric: str) -> np.ndarray:
        """Computes a metric of every user by seed, float64 [num_seeds, num_users]."""
        name, k = split_metric(metric)
        return np.stack([metric_of_users(name, k, places, self.rows, self.degrees).numpy() for places in self.places])

    @cached_property
    def depth(self) -> int:
        """Length of the ranked lists."""
        return self.tests[0].depth

    def summary(
        self, metric: str, convergence: Convergence, as_linear: Convergence | None, search: SearchResult | None, added: bool
    ) -> ModelResults:
        """Computes means over seeds of everything that cells gave; of a teacher's modalities the metric alone.

        Args:
            metric: Name of the metric.
            convergence: When its trainings reached a share of a validation metric.
            as_linear: When they reached what the best linear model has.
            search: What the model's search found, None where it was not searched.
            added: Whether the model was added when test figures were known.
        """
        model, first = self.model, self.results[0]
        validation = {name: over_seeds([result.validation[name] for result in self.results]) for name in first.validation}
        test = {name: over_seeds([test.metrics[name] for test in self.tests]) for name in self.tests[0].metrics}
        modalities = {m: over_seeds([result.modalities[m][metric] for result in self.results]) for m in first.modalities}
        fitted = [result.trials for result in self.results if result.trials is not None]
        return ModelResults(
            role=model.role,
            stage=model.stage,
            teacher=model.teacher,
            of=model.of,
            validation=validation,
            test=test,
            modalities=modalities,
            num_parameters=over_seeds([result.num_parameters for result in self.results]),
            serving_bytes=over_seeds([result.serving_bytes for result in self.results]),
            seconds=over_seeds([result.seconds for result in self.results]),
            seconds_per_epoch=over_seeds([result.seconds_per_epoch for result in self.results]),
            ranking_seconds=over_seeds([result.ranking_seconds for result in self.results]),
            best_epoch=over_seeds([result.best_epoch for result in self.results]),
            epochs=over_seeds([result.epochs for result in self.results]),
            convergence=convergence,
            as_linear=as_linear,
            search=None if search is None else asdict(search),
            fit_trials=over_seeds(fitted) if fitted else None,
            agreement=_agreement([result.agreement for result in self.results]),
            added=added,
        )


def _agreement(by_seed: list[dict[str, float] | None]) -> dict[str, Spread] | None:
    """Computes means over seeds of the agreement with the teacher; None where there is none, or cells of earlier versions lack it."""
    known = [found for found in by_seed if found is not None]
    if not known or len(known) < len(by_seed):
        return None
    return {name: over_seeds([found[name] for found in known]) for name in known[0]}


def collect(models: Models, dataset: Dataset, searches: dict[str, SearchResult], added: list[str]) -> Results:
    """Collects all numbers of the report, as results.json has them.

    Args:
        models: Every cell of theirs is finished and tested.
        dataset: The experiment's, with its test split.
        searches: What searches found, by model.
        added: Models that were added when test figures were known.
    """
    config, metric = models.recipe.config, models.recipe.metric
    outcomes = {name: _outcome(models, name) for name in models.by_name}
    facts = {key: dataset.manifest[key] for key in ("num_users", "num_items", "num_interactions", "modalities")}
    transfer = config.compare.transferability
    choices = {name: search.settings for name, search in searches.items()}

    trained = {name: outcome.results for name, outcome in outcomes.items()}
    convergences = converged(models, choices, trained, dataset.manifest["num_interactions"]["train"])

    def summary(name: str, outcome: Outcome) -> ModelResults:
        return outcome.summary(metric, *convergences[name], searches.get(name), name in added)

    return {
        "experiment": models.recipe.title,
        "metric": metric,
        "seeds": config.seeds,
        "threads": models.recipe.base.cluster.threads or 1,
        "list_length": max(models.recipe.base.evaluation.cutoffs),
        "dataset": {**facts, "digest": dataset.digest, "test_users": len(outcomes[next(iter(outcomes))].degrees)},
        "models": {name: summary(name, outcome) for name, outcome in outcomes.items()},
        "comparisons": _comparisons(models, outcomes, metric),
        "transferability": None if transfer is None else _transferability(outcomes, transfer, metric),
        "ablations": _against_their_models(models.of_role("ablation"), outcomes, metric),
        "sweeps": {name: [m.name for m in models.of_role("sweep") if m.point and m.point[0] == name] for name in config.sweeps},
        "popularity": _popularity(models, outcomes, dataset, metric),
    }


def _outcome(models: Models, name: str) -> Outcome:
    urls = [models.cell_url(name, seed) for seed in models.recipe.config.seeds]
    arrays = [read_places(url) for url in urls]
    _, rows, degrees = arrays[0]["user"].unique(return_inverse=True, return_counts=True)
    records, tests = [read_cell(url) for url in urls], [read_test(url) for url in urls]
    results = [record.result for record in records if record is not None and record.result is not None]
    assert len(results) == len(urls), "every cell is trained before the report"
    tested = [test for test in tests if test is not None]
    return Outcome(models[name], results, tested, torch.stack([a["place"] for a in arrays]), rows, degrees)


def _compared(pairs: list[tuple[str, str]], outcomes: dict[str, Outcome], metric: str) -> list[Comparison]:
    """Compares pairs of models, paired over users, with p-values of the t-test adjusted for the number of pairs."""
    from scipy.stats import ttest_rel

    rows: list[Comparison] = []
    for names in pairs:
        first, second = (outcomes[name].of_users(metric).mean(0) for name in names)  # [num_users] each, averaged over the seeds
        differences = first - second
        same = not np.any(differences) or len(differences) < 2
        low, high = mean_interval(differences)
        rows.append(
            Comparison(
                first=names[0],
                second=names[1],
                difference=float(differences.mean()),
                low=low,
                high=high,
                p_t=1.0 if same else float(ttest_rel(first, second).pvalue),
                p_sign_flip=sign_flip_p(differences),
                p_holm=1.0,
            )
        )
    for row, adjusted in zip(rows, holm([row["p_t"] for row in rows])):
        row["p_holm"] = adjusted
    return rows


def _comparisons(models: Models, outcomes: dict[str, Outcome], metric: str) -> list[Comparison]:
    """Compares every reference with every other model of the recipe."""
    names = [model.name for model in models.of_role("model")]
    references = models.recipe.config.compare.references or [n for n in names if models[n].teacher] or names[:1]
    pairs: list[tuple[str, str]] = []
    for reference in references:
        pairs += [(reference, name) for name in names if name != reference and (name, reference) not in pairs]
    return _compared(pairs, outcomes, metric)


def _against_their_models(ablations: list[Model], outcomes: dict[str, Outcome], metric: str) -> list[Comparison]:
    """Compares every ablation with the model that it changes."""
    return _compared([(model.name, model.of or "") for model in ablations], outcomes, metric)


def _transferability(outcomes: dict[str, Outcome], names: TransferConfig, metric: str) -> Transferability:
    """Computes (student - undistilled) / (teacher - undistilled): of the means, with a bootstrap over users, and by seed."""
    by_seed = [outcomes[name].of_users(metric) for name in (names.student, names.teacher, names.undistilled)]
    means = [values.mean(1) for values in by_seed]  # [num_seeds] each
    value = float(transferability(*(np.array([m.mean()]) for m in means))[0])
    low, high = bootstrap_interval(np.stack([values.mean(0) for values in by_seed]), lambda m: transferability(*m))
    lead = (by_seed[1] - by_seed[2]).mean(0)
    lead_low, lead_high = mean_interval(lead)
    seeds = [float(v) if np.isfinite(v) else None for v in transferability(*means)]
    finite = [v for v in seeds if v is not None]
    return {
        "student": names.student,
        "teacher": names.teacher,
        "undistilled": names.undistilled,
        "value": value if np.isfinite(value) else None,
        "low": low if np.isfinite(low) else None,
        "high": high if np.isfinite(high) else None,
        "by_seed": seeds,
        "over_seeds": over_seeds(finite) if finite else None,
        "teacher_lead": {"value": float(lead.mean()), "low": lead_low, "high": lead_high},
    }


def _popularity(models: Models, outcomes: dict[str, Outcome], dataset: Dataset, metric: str) -> Popularity:
    """Computes the share of test items found in lists of K, by how often train has them, for the models of the recipe."""
    k = split_metric(metric)[1]
    popularity = np.bincount(dataset.csr("train").columns.numpy(), minlength=dataset.num_items)
    of_pairs = popularity[dataset.csr(TEST).columns.numpy()]  # train interactions of the item of every test pair
    known, edges = of_pairs[of_pairs > 0], np.empty(0, np.int64)
    if len(known):
        edges = np.unique(np.quantile(known, np.linspace(0, 1, POPULARITY + 1)[1:-1], method="higher"))
    groups: dict[str, np.ndarray] = {"0 (cold)": of_pairs == 0}
    low = 1
    for edge in edges:
        groups[f"{low}–{edge}" if low < edge else f"{edge}"] = (of_pairs >= low) & (of_pairs <= edge)
        low = int(edge) + 1
    groups[f"≥ {low}"] = of_pairs >= low
    groups = {name: inside for name, inside in groups.items() if inside.any()}
    shown = {}
    for model in models.of_role("model"):
        hits = (outcomes[model.name].places < k).double().numpy()  # [num_seeds, num_pairs]
        shown[model.name] = {name: over_seeds(hits[:, inside].mean(1).tolist()) for name, inside in groups.items()}
    return {"k": k, "num_pairs": {name: int(inside.sum()) for name, inside in groups.items()}, "models": shown}


def lengths_of_curve(results: Results) -> list[int]:
    """Lists the lengths that every model's ranked lists reach."""
    first = next(iter(results["models"].values()))["test"]
    return [k for k in CURVE if f"recall@{k}" in first]
