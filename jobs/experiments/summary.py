"""What results.json of an experiment over several catalogs holds: its models side by side, from the results on each catalog."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TypedDict

from ...core.metric_names import split_metric
from ...core.statistics import holm, ranks
from ...core.storage import JsonObject
from .config import ExperimentConfig
from .document import Budget, Comparison, Convergence, Results, Spread
from .settings import CatalogsRecipe


@dataclass(frozen=True)
class Part:
    """An experiment on one catalog, finished.

    Attributes:
        results: Its results.json.
        budgets: What searches took, by model.
        left_out: Models that the catalog has not, with the reasons.
        settings: Dotted settings of this catalog over its base recipe, of the recipe and of the command line.
        added: Whether the catalog came when test figures on others were known.
    """

    results: Results
    budgets: dict[str, Budget]
    left_out: dict[str, str]
    settings: JsonObject
    added: bool = False


class OnCatalog(TypedDict):
    """A model on one catalog: test metrics, rank among the models there, costs, and the share of its teacher's test metric."""

    test: dict[str, Spread]
    rank: float
    share_of_teacher: float | None
    convergence: Convergence
    as_linear: Convergence | None
    seconds: Spread
    serving_bytes: Spread
    budget: Budget
    fit_trials: Spread | None
    added: bool


class OverCatalogs(TypedDict):
    """A model of the recipe: what it is, where it was trained, where not and why, and the mean of its ranks where it was."""

    stage: str
    teacher: str | None
    catalogs: dict[str, OnCatalog]
    left_out: dict[str, str]
    mean_rank: float | None


class CatalogComparison(Comparison):
    """A comparison on one catalog; `p_holm` is adjusted for all of the list that it is in, over all catalogs."""

    catalog: str


class CatalogFacts(TypedDict):
    """What a catalog is: its dataset, its base recipe with the settings over it, and `models`, those of some models on it alone.

    `added` says that it came when test figures on others were known.
    """

    dataset: JsonObject
    recipe: str | None
    settings: JsonObject
    models: dict[str, JsonObject]
    added: bool


class Summary(TypedDict):
    """The whole document; `ablations` are beside the models that they change."""

    experiment: str
    metric: str
    seeds: list[int]
    threads: int
    catalogs: dict[str, CatalogFacts]
    models: dict[str, OverCatalogs]
    comparisons: list[CatalogComparison]
    ablations: list[CatalogComparison]


def metrics_shown(metric: str) -> list[str]:
    """Lists the test metrics that are compared over catalogs: the experiment's, and NDCG and recall at its list length."""
    return list(dict.fromkeys([metric, *(f"{name}@{split_metric(metric)[1]}" for name in ("recall", "ndcg"))]))


def summarise(recipe: CatalogsRecipe, parts: Mapping[str, Part]) -> Summary:
    """Puts the results on all catalogs together.

    Args:
        recipe: The experiment.
        parts: What it gave on every catalog, by name.
    """
    config, first = recipe.config, next(iter(parts.values())).results
    places = {catalog: _ranks(config, part.results) for catalog, part in parts.items()}
    models = {}
    for name, model in config.models.items():
        having = {catalog: part for catalog, part in parts.items() if name in part.results["models"]}
        found = [places[catalog][name] for catalog in having]
        models[name] = OverCatalogs(
            stage=model.stage,
            teacher=model.teacher,
            catalogs={catalog: _on_catalog(name, part, places[catalog][name]) for catalog, part in having.items()},
            left_out={catalog: part.left_out[name] for catalog, part in parts.items() if catalog not in having},
            mean_rank=sum(found) / len(found) if found else None,
        )
    return {
        "experiment": recipe.name,
        "metric": first["metric"],
        "seeds": first["seeds"],
        "threads": first["threads"],
        "catalogs": {
            catalog: CatalogFacts(
                dataset=part.results["dataset"],
                recipe=config.catalogs[catalog].recipe or config.recipe,
                settings=part.settings,
                models=config.catalogs[catalog].models,
                added=part.added,
            )
            for catalog, part in parts.items()
        },
        "models": models,
        "comparisons": _family({catalog: part.results["comparisons"] for catalog, part in parts.items()}),
        "ablations": _family({catalog: part.results["ablations"] for catalog, part in parts.items()}),
    }


def _ranks(config: ExperimentConfig, results: Results) -> dict[str, float]:
    """Ranks the models of one catalog by the mean test metric."""
    names = [name for name in config.models if name in results["models"]]
    return dict(zip(names, ranks([results["models"][name]["test"][results["metric"]]["mean"] for name in names])))


def _on_catalog(name: str, part: Part, rank: float) -> OnCatalog:
    results = part.results
    model, metric = results["models"][name], results["metric"]
    teacher = model["convergence"]["of"]
    share = None
    if teacher is not None and results["models"][teacher]["test"][metric]["mean"]:
        share = model["test"][metric]["mean"] / results["models"][teacher]["test"][metric]["mean"]
    return {
        "test": {name: model["test"][name] for name in metrics_shown(metric)},
        "rank": rank,
        "share_of_teacher": share,
        "convergence": model["convergence"],
        "as_linear": model["as_linear"],
        "seconds": model["seconds"],
        "serving_bytes": model["serving_bytes"],
        "budget": part.budgets[name],
        "fit_trials": model["fit_trials"],
        "added": model["added"],
    }


def _family(by_catalog: Mapping[str, list[Comparison]]) -> list[CatalogComparison]:
    """Joins the comparisons on all catalogs, with Holm's correction for their whole number."""
    rows = [CatalogComparison(**row, catalog=catalog) for catalog, comparisons in by_catalog.items() for row in comparisons]
    for row, adjusted in zip(rows, holm([row["p_t"] for row in rows])):
        row["p_holm"] = adjusted
    return rows
