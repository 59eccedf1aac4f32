"""`promptmm experiment`: a grid of models, seeds, ablations and sweeps on Ray, on one catalog or on several, and one report.

1. prepare   the dataset of every catalog, once for all cells
2. search    per searched model, teachers first: trials on validation (Ray Tune); the best one's settings are written to choices.json
3. train     a Ray task a cell; a student when its teacher's cell of the same seed is done; cells of all catalogs mixed
4. test      only now, with everything chosen on every catalog: frozen.json, then test.json for every cell
5. report    results.json, report.md, plots/: of each catalog, and above them of all together

The same command again goes on where it stopped: finished trials and cells are not trained again, others resume from their checkpoints.
"""

import os
from collections.abc import Sequence
from dataclasses import dataclass

import ray
from ray.actor import ActorHandle

from ...core.config import as_dict
from ...core.errors import InputError, RunError
from ...core.redaction import redacted_tree
from ...core.storage import JsonObject, join, write_bytes, write_json
from ...distributed.execution.lines import start_progress
from ...distributed.execution.session import ray_session
from ...graph_store.dataset import Dataset
from ..runs.compatibility import check_teachable
from ..runs.folder import need_shared_storage, open_run_dataset, warn_of_passing_folder
from ..runs.preparation import prepare_dataset
from ..runs.stages import ChangedInputsError
from .catalogs import left_out, naming
from .cells import Cell, failure_of, task_options, waiting_for
from .config import ExperimentConfig
from .crew import Crew, Progress
from .document import Results
from .grid import Grid, interleaved, search_all
from .models import Models, expand
from .report import write_report
from .results import collect
from .settings import AnyRecipe, CatalogsRecipe, Recipe
from .summary import Part, summarise
from .summary_report import write_summary
from .testing import check_catalogs, check_frozen, definition, freeze, freeze_catalogs, rank_test_items_task, tested


@dataclass(frozen=True)
class Prepared:
    """An experiment on one catalog that is ready to be trained: its models, its dataset, and what may not change once it is tested."""

    models: Models
    dataset: Dataset
    definition: JsonObject

    @property
    def run_dir(self) -> str:
        """Its folder."""
        return self.models.recipe.base.dir


def run_experiment(recipe: AnyRecipe) -> None:
    """Runs an experiment to its report, from where it stopped.

    Raises:
        InputError: the recipe or the data do not fit together, or what was tested would change.
        RunError: cells failed; the others are finished first.
    """
    over = recipe if isinstance(recipe, CatalogsRecipe) else None
    recipes = [recipe] if isinstance(recipe, Recipe) else list(recipe.recipes.values())
    need_shared_storage(recipes[0].base, "experiment")
    warn_of_passing_folder(recipes[0].base)
    if over is not None:
        check_catalogs(over.dir, list(over.recipes))
    experiments = [_prepare(models) for models in [_expand(of_catalog) for of_catalog in recipes]]
    for experiment, of_catalog in zip(experiments, recipes):
        _save(experiment.run_dir, of_catalog.config, of_catalog.overrides, base=as_dict(of_catalog.base))
    if over is not None:
        _save(over.dir, over.config, over.overrides)
    grids, added, later = _train_and_test(experiments, over)
    results = [_report(experiment, grid, names) for experiment, grid, names in zip(experiments, grids, added)]
    run_dir = experiments[0].run_dir
    if over is not None:
        run_dir = over.dir
        parts = {
            catalog: Part(
                of_catalog,
                {name: grid.budget(name) for name in experiment.models.by_name},
                left_out(over.config, catalog),
                experiment.models.recipe.shown_settings,
                catalog in later,
            )
            for catalog, experiment, grid, of_catalog in zip(over.recipes, experiments, grids, results)
        }
        summary = summarise(over, parts)
        write_json(join(run_dir, "results.json"), summary)
        print(f"\n{write_summary(run_dir, over.config, summary)}", flush=True)
    print(f"\n[experiment] results: {run_dir}/results.json, {run_dir}/report.md; plots: {run_dir}/plots", flush=True)


def _expand(recipe: Recipe) -> Models:
    with naming(recipe.catalog):
        return expand(recipe)


def _prepare(models: Models) -> Prepared:
    """Prepares the dataset of a catalog.

    Raises:
        InputError: the source is wrong, lacks a split or what a model reads, or what was tested would change; it names the catalog.
    """
    base, catalog = models.recipe.base, models.recipe.catalog
    with naming(catalog):
        if catalog is not None:
            print(f"[experiment] catalog {catalog}", flush=True)
        try:
            prepare_dataset(base)
        except ChangedInputsError as error:
            raise InputError(f"{error.found}. Use another run.dir for another experiment") from error
        dataset = open_run_dataset(base)
        for split in ("validation", "test"):
            if not dataset.has_split(split):
                raise InputError(f"{base.dir}/dataset has no {split} split: an experiment chooses on validation and reports test")
        base.evaluation.check_catalog(dataset.num_items)
        if catalog is not None:
            _check_teachers(models, dataset, catalog)
        now = definition(models, dataset)
        check_frozen(base.dir, now)
    return Prepared(models, dataset, now)


def _check_teachers(models: Models, dataset: Dataset, catalog: str) -> None:
    """Refuses teachers that read features on a catalog that has none, before anything is trained."""
    for name, model in models.by_name.items():
        if model.stage == "teacher":
            try:
                check_teachable(models.settings(name, models.recipe.config.seeds[0], {}), dataset)
            except InputError as error:
                raise InputError(
                    f"model {name!r}: {error}; or leave the model out of this catalog (catalogs.{catalog}.without), or give it other "
                    f"settings here (catalogs.{catalog}.models.{name})"
                ) from error


def _train_and_test(experiments: Sequence[Prepared], over: CatalogsRecipe | None) -> tuple[list[Grid], list[list[str]], list[str]]:
    """Searches, trains and tests on all catalogs.

    Returns:
        Every catalog's grid, the models that were added to each when test figures were known, and the catalogs that were.
    """
    first = experiments[0].models.recipe
    cluster, threads = first.base.cluster, first.base.cluster.threads or 1
    with ray_session(cluster, num_cpus=max(threads, os.cpu_count() or 1)):
        crew = Crew(Progress(first.metric), start_progress())
        grids = [Grid(experiment.models, experiment.dataset, crew) for experiment in experiments]
        search_all(grids)
        cells = [grid.cells() for grid in grids]
        left = [[(cell, e.run_dir) for cell in of_catalog if not tested(cell)] for of_catalog, e in zip(cells, experiments)]
        crew.train(interleaved(cells))
        later = [] if over is None else freeze_catalogs(over.dir, list(over.recipes))
        added = [freeze(experiment.run_dir, experiment.definition) for experiment in experiments]
        _test(interleaved(left), crew.lines)
    return grids, added, later


def _report(experiment: Prepared, grid: Grid, added: list[str]) -> Results:
    """Writes the results and the report of one catalog, and shows the table of its models."""
    results = collect(experiment.models, experiment.dataset, grid.searches, added)
    write_json(join(experiment.run_dir, "results.json"), results)
    text, catalog = write_report(experiment.run_dir, experiment.models, results), experiment.models.recipe.catalog
    print(f"\n{text}" if catalog is None else f"\n{catalog}:\n\n{text}", flush=True)
    return results


def _save(run_dir: str, config: ExperimentConfig, overrides: Sequence[str], **more: JsonObject) -> None:
    """Writes experiment.yaml; without `catalogs` where there is one catalog."""
    import yaml

    keys = {key: value for key, value in as_dict(config).items() if key != "catalogs" or value}
    values = {"experiment": keys, "overrides": list(overrides), **more}
    write_bytes(join(run_dir, "experiment.yaml"), yaml.safe_dump(redacted_tree(values), sort_keys=False).encode())


def _test(cells: Sequence[tuple[Cell, str]], lines: ActorHandle) -> None:
    """Ranks the test items of cells, on Ray; each beside the folder of its catalog's experiment.

    Raises:
        RunError: a cell's pass failed.
    """
    if not cells:
        return
    print(f"[experiment] every choice is final: testing {len(cells)} cells", flush=True)
    with waiting_for(cells[0][0], lines):
        tasks = [rank_test_items_task.options(**task_options(cell)).remote(cell, run_dir, lines) for cell, run_dir in cells]
        for task, (cell, _) in zip(tasks, cells):
            try:
                ray.get(task)
            except ray.exceptions.RayTaskError as error:
                raise RunError(f"the test pass failed: {cell.name}: {failure_of(error)}") from error
