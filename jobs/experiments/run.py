"""`promptmm experiment`: a grid of models, seeds, ablations and sweeps on Ray, and one report.

1. prepare   the dataset, once for all cells
2. search    per searched model, teachers first: trials on validation (Ray Tune); the best one's settings are written to choices.json
3. train     a Ray task a cell; a student when its teacher's cell of the same seed is done
4. test      only now, with everything chosen: frozen.json, then test.json for every cell
5. report    results.json, report.md, plots/

The same command again goes on where it stopped: finished trials and cells are not trained again, others resume from their checkpoints.
"""

import os

import ray
from ray.actor import ActorHandle

from ...core.config import as_dict
from ...core.errors import InputError, RunError
from ...core.storage import join, write_bytes, write_json
from ...distributed.execution.session import ray_session
from ..runs.folder import need_shared_storage, open_run_dataset, warn_of_passing_folder
from ..runs.preparation import prepare_dataset
from .cells import Cell, failure_of, task_options, waiting_for
from .grid import Grid
from .models import expand
from .report import write_report
from .results import collect
from .settings import Recipe
from .testing import check_frozen, definition, freeze, rank_test_items_task, tested


def run_experiment(recipe: Recipe) -> None:
    """Runs an experiment to its report, from where it stopped.

    Raises:
        InputError: the recipe or the data do not fit together, or what was tested would change.
        RunError: cells failed; the others are finished first.
    """
    base, models = recipe.base, expand(recipe)
    need_shared_storage(base, "experiment")
    warn_of_passing_folder(base)
    prepare_dataset(base)
    dataset = open_run_dataset(base)
    for split in ("validation", "test"):
        if not dataset.has_split(split):
            raise InputError(f"{base.dir}/dataset has no {split} split: an experiment chooses on validation and reports test")
    base.evaluation.check_catalog(dataset.num_items)
    now = definition(models, dataset)
    check_frozen(base.dir, now)
    _save(recipe)
    threads, cores = base.cluster.threads or 1, os.cpu_count() or 1
    with ray_session(base.cluster, num_cpus=max(threads, cores)):
        grid = Grid(models, dataset)
        grid.search()
        cells = grid.cells()
        left = [cell for cell in cells if not tested(cell)]
        grid.train(cells)
        added = freeze(base.dir, now)
        _test(left, base.dir, grid.lines)
    results = collect(models, dataset, grid.searches, added)
    write_json(join(base.dir, "results.json"), results)
    text = write_report(base.dir, models, results)
    print(f"\n{text}\n\n[experiment] results: {base.dir}/results.json, {base.dir}/report.md; plots: {base.dir}/plots", flush=True)


def _save(recipe: Recipe) -> None:
    import yaml

    values = {"experiment": as_dict(recipe.config), "overrides": list(recipe.overrides), "base": as_dict(recipe.base)}
    write_bytes(join(recipe.base.dir, "experiment.yaml"), yaml.safe_dump(values, sort_keys=False).encode())


def _test(cells: list[Cell], run_dir: str, lines: ActorHandle) -> None:
    """Ranks the test items of cells, on Ray.

    Raises:
        RunError: a cell's pass failed.
    """
    if not cells:
        return
    print(f"[experiment] every choice is final: testing {len(cells)} cells", flush=True)
    try:
        with waiting_for(cells[0], lines):
            ray.get([rank_test_items_task.options(**task_options(cell)).remote(cell, run_dir, lines) for cell in cells])
    except ray.exceptions.RayTaskError as error:
        raise RunError(f"the test pass failed: {failure_of(error)}") from error
