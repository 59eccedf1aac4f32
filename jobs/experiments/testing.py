"""The test pass of an experiment: once, after everything that was chosen is final.

frozen.json holds what the experiment was when the first test figure was made. Test is read where it is there, and nowhere else; from then
on its models stay as they are. Models may be added, and are marked as such: they were written down when test figures were known.
"""

from typing import Any

import ray
import torch
from ray.actor import ActorHandle

from ...core.errors import InputError, RunError
from ...core.metrics import is_of_users, metric_of_users
from ...core.ranking import held_out_places
from ...core.redaction import redacted_tree
from ...core.storage import JsonObject, exists, join, read_bytes, read_json, write_bytes, write_json
from ...graph_store.dataset import Dataset, masks, open_dataset
from ..runs.stages import differences
from .cells import TEST, Cell, trained_model
from .config import RangeConfig
from .models import Models, what_decides
from .records import TestRecord, read_test, write_test

CURVE = tuple(range(5, 55, 5))  # list lengths of the report's curve


def frozen_url(run_dir: str) -> str:
    """Names the file that holds the experiment as it was tested."""
    return join(run_dir, "frozen.json")


def definition(models: Models, dataset: Dataset) -> JsonObject:
    """Collects what of an experiment may not change once it is tested, as JSON-able values."""
    config, by_name = models.recipe.config, {}
    for name, model in models.by_name.items():
        settings, search = models.settings(name, config.seeds[0], {}), config.search.get(name)
        by_name[name] = {
            "stage": model.stage,
            "teacher": models.teacher_of(name, settings),
            "settings": what_decides(model.stage, settings),
            "search": None if search is None else {"trials": search.trials, "space": _plain_space(search.space), "seeds": search.seeds},
        }
    return {"metric": models.recipe.metric, "seeds": config.seeds, "dataset": dataset.digest, "models": by_name}


def _plain_space(space: dict[str, list[Any] | RangeConfig]) -> JsonObject:
    return {key: values if isinstance(values, list) else dict(vars(values)) for key, values in space.items()}


def check_frozen(run_dir: str, now: JsonObject) -> None:
    """Refuses an experiment that was tested as another one.

    Args:
        run_dir: The experiment's folder.
        now: Its `definition`.

    Raises:
        InputError: what was tested would change; the message names it.
    """
    if not exists(frozen_url(run_dir)):
        return
    frozen = read_json(frozen_url(run_dir))
    if "definition" not in frozen:
        raise InputError(f"{run_dir} has the experiment over the catalogs {', '.join(frozen['catalogs'])}; use another run.dir")
    before, now = frozen["definition"], redacted_tree(now)
    changed = []
    for name, model in before["models"].items():
        if name in now["models"]:
            changed += differences(model, now["models"][name], name=f"models.{name}")
        else:
            changed.append(f"models.{name} is not in the recipe any more")
    changed += differences({k: v for k, v in before.items() if k != "models"}, {k: v for k, v in now.items() if k != "models"})
    if changed:
        raise InputError(
            f"{run_dir}: test figures of this experiment exist, and nothing may be chosen after them; what was tested had "
            + "; ".join(changed)
            + ". Use another run.dir for another experiment; new models may be added to this one"
        )


def freeze(run_dir: str, now: JsonObject) -> list[str]:
    """Notes the experiment as it is tested; returns the models that were added to one that was tested before."""
    url = frozen_url(run_dir)
    frozen: JsonObject = read_json(url) if exists(url) else {"definition": now, "added": []}
    frozen["added"] += [name for name in now["models"] if name not in frozen["definition"]["models"]]
    frozen["definition"]["models"] |= now["models"]
    write_json(url, frozen)
    return frozen["added"]


def check_catalogs(run_dir: str, catalogs: list[str]) -> None:
    """Refuses an experiment over several catalogs that was tested over others.

    Args:
        run_dir: The experiment's folder; each catalog's own, with its own frozen.json, is below it.
        catalogs: Names of its catalogs.

    Raises:
        InputError: a catalog is not in the recipe any more, or the folder has an experiment on one catalog.
    """
    if not exists(frozen_url(run_dir)):
        return
    frozen = read_json(frozen_url(run_dir))
    if "catalogs" not in frozen:
        raise InputError(f"{run_dir} has an experiment on one catalog; use another run.dir for one over several")
    gone = [name for name in frozen["catalogs"] if name not in catalogs]
    if gone:
        raise InputError(
            f"{run_dir}: test figures of this experiment exist, and nothing may be chosen after them; the catalogs {', '.join(gone)} are "
            "not in it any more. Use another run.dir for another experiment; catalogs may be added to this one"
        )


def freeze_catalogs(run_dir: str, catalogs: list[str]) -> list[str]:
    """Notes the catalogs of an experiment before they are tested; returns those that were added when others had been tested."""
    url = frozen_url(run_dir)
    frozen: JsonObject = read_json(url) if exists(url) else {"catalogs": catalogs, "added": []}
    new = [name for name in catalogs if name not in frozen["catalogs"]]
    write_json(url, {"catalogs": [*frozen["catalogs"], *new], "added": [*frozen["added"], *new]})
    return [*frozen["added"], *new]


def tested(cell: Cell) -> bool:
    """Whether a cell has been tested.

    Raises:
        InputError: they are of a model that was made with other inputs.
    """
    record = read_test(cell.url)
    if record is None:
        return False
    if record.digest != cell.digest:
        url = join(cell.url, "test.json")
        raise InputError(f"{url}: of a cell that was made with other settings or by another version; use another run.dir")
    return True


def rank_test_items(cell: Cell, run_dir: str, lines: ActorHandle | None = None) -> dict[str, float]:
    """Ranks a finished cell's test items and writes test.json and test.safetensors; returns the metrics.

    test.safetensors has `user`, `item` and `place` int32 [num_pairs]: where every held-out item stands in its user's list, `depth` where it
    is not among the first `depth`.

    Raises:
        RunError: the experiment is not frozen.
    """
    from safetensors.torch import save

    if lines is not None:
        lines.start.remote()
    if not exists(frozen_url(run_dir)):
        raise RunError(f"{run_dir}: test is read when every choice is final, and {frozen_url(run_dir)} is not there")
    settings = cell.settings
    torch.set_num_threads(cell.threads)
    dataset = open_dataset(cell.dataset_url, settings.cluster.cache_dir)
    model = trained_model(cell.stage, cell.url, dataset, settings.cluster.cache_dir)
    held_out, exclude = masks(dataset, TEST)
    depth = min(max(*CURVE, *settings.evaluation.cutoffs), dataset.num_items)
    places = held_out_places(model.users, model.items, held_out, exclude, depth, settings.evaluation.memory_mib, model.histories)
    arrays = {"user": held_out.rows.int(), "item": held_out.columns.int(), "place": places.int()}
    write_bytes(join(cell.url, "test.safetensors"), save(arrays))
    _, rows, degrees = held_out.rows.unique(return_inverse=True, return_counts=True)
    names = [name for name in settings.evaluation.metric_names if is_of_users(name)]
    lengths = sorted({*CURVE, *settings.evaluation.cutoffs} & {*range(depth + 1)})
    metrics = {f"{m}@{k}": float(metric_of_users(m, k, places, rows, degrees).mean()) for m in names for k in lengths}
    write_test(cell.url, TestRecord(cell.digest, depth, metrics))
    return metrics


def read_places(url: str) -> dict[str, torch.Tensor]:
    """Reads the arrays of test.safetensors in a cell's folder, int64 [num_pairs] each."""
    from safetensors.torch import load

    return {name: values.long() for name, values in load(read_bytes(join(url, "test.safetensors"))).items()}


rank_test_items_task = ray.remote(rank_test_items)
