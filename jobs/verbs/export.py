"""`promptmm export`: the bundle that serves, without Ray, DGL or DeepSpeed."""

from functools import partial

from ...core.artifact import manifest_digest, open_artifact
from ...core.errors import InputError
from ...core.new_items import ItemMap
from ...core.serving import write_bundle
from ...core.sides import ITEMS, USERS
from ...core.storage import JsonObject, join, read_json
from ...distributed.loop.stage import stage_url
from ...distributed.worker import torch_threads
from ...graph_store.dataset import Dataset
from ..runs.folder import open_run_dataset
from ..runs.lineage import UNMAPPED, bundle_inputs
from ..runs.models import trained_student
from ..runs.new_items import BundleItems, bundle_items, fit_new_items
from ..runs.stages import require_done, run_stage
from ..settings import Settings
from .verb import Verb


def export(settings: Settings) -> None:
    """The trained student with ids, seen items, metrics and lineage -> student/, the serving bundle."""
    from safetensors.torch import load_file

    dataset = open_run_dataset(settings)
    cache_dir = settings.cluster.cache_dir
    folder, manifest = open_artifact(join(stage_url(settings.dir, "student"), "model"), "student-model", cache_dir)
    results, inputs = read_json(join(settings.dir, "results.json")), bundle_inputs(settings, dataset, manifest)
    _check_evaluated(require_done(settings.dir, "evaluate", "export").made_with, inputs)

    def make() -> JsonObject:
        student = trained_student(settings.dir, cache_dir)
        with torch_threads(settings.cluster.worker_threads):  # sums of floats depend on it, and what ran here before may have set it
            item_map = fit_new_items(dataset, student, manifest["seed"])
        bundle = bundle_items(dataset, student, item_map if settings.export.map_untouched else None)
        ranked = results["bundle" if bundle.num_mapped else "student"]
        metadata = {
            "metrics": {split: ranked.get(split) for split in ("validation", "test")},
            "num_untouched": bundle.num_untouched,
            "num_mapped": bundle.num_mapped,
            "config": manifest["config"],
            "distillation": manifest["distillation"],
            "seed": manifest["seed"],
            "lineage": {**manifest["lineage"], "student_model": manifest_digest(manifest)},
        }
        url = join(settings.dir, "student")
        weights = load_file(str(folder / "weights.safetensors"))
        ids = partial(dataset.id_chunks, USERS), partial(dataset.id_chunks, ITEMS)
        write_bundle(url, student.users, student.items, *ids, dataset.rows("train"), weights, metadata, item_map, bundle.scores.changed)
        _say(dataset, item_map, bundle)
        return {"url": url}

    run_stage(settings, "export", inputs, make)


def _check_evaluated(evaluated: JsonObject, exported: JsonObject) -> None:
    """Raises InputError where evaluate ranked by other item vectors than the bundle would have."""
    before, now = (inputs.get("export", UNMAPPED)["map_untouched"] for inputs in (evaluated, exported))
    if before != now:
        raise InputError(
            f"export.map_untouched={str(now).lower()}: evaluate ranked with export.map_untouched={str(before).lower()}, and the bundle's "
            "metrics are those that evaluate found; give both verbs the same, or evaluate again with run.redo=evaluate"
        )


def _say(dataset: Dataset, item_map: ItemMap | None, bundle: BundleItems) -> None:
    """Says what the bundle can do for items that nobody has touched."""
    if item_map is not None:
        facts = item_map.facts
        form = "whitened" if facts["whiten"] else "standardised"
        print(
            f"[export] new items: map of {', '.join(item_map.encodings)} ({form}) fitted on {facts['num_items']:,} items; train items of a "
            f"fold, ranked by it as if nobody had touched them: recall@{facts['list_length']} {facts['recall']:.4f}",
            flush=True,
        )
        if bundle.num_untouched:
            print(
                f"[export] {bundle.num_mapped:,} of {bundle.num_untouched:,} items without train interactions have vectors of the map in "
                "the bundle (export.map_untouched), the others the student's own",
                flush=True,
            )
    elif dataset.modalities:
        print("[export] new items: too few items have both features and train interactions, so the bundle has no map", flush=True)


EXPORT: Verb[Settings] = Verb("export", export, ("run", "export", "cluster"), products=("student",), needs=("evaluate",), is_stage=True)
