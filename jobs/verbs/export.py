"""`promptmm export`: the bundle that serves, without Ray, DGL or DeepSpeed."""

from ...core.artifact import manifest_digest, open_artifact
from ...core.new_items import ItemMap
from ...core.serving import write_bundle
from ...core.storage import JsonObject, join, read_json
from ...distributed.loop.stage import stage_url
from ...graph_store.dataset import Dataset
from ..runs.folder import open_run_dataset
from ..runs.lineage import bundle_inputs
from ..runs.models import trained_student
from ..runs.new_items import fit_new_items
from ..runs.stages import run_stage
from ..settings import Settings
from .verb import Verb


def export(settings: Settings) -> None:
    """The trained student with ids, seen items, metrics and lineage -> student/, the serving bundle."""
    from safetensors.torch import load_file

    dataset = open_run_dataset(settings)
    cache_dir = settings.cluster.cache_dir
    folder, manifest = open_artifact(join(stage_url(settings.dir, "student"), "model"), "student-model", cache_dir)
    results = read_json(join(settings.dir, "results.json"))

    def make() -> JsonObject:
        student = trained_student(settings.dir, cache_dir)
        item_map = fit_new_items(dataset, student, manifest["seed"])
        metadata = {
            "metrics": {split: results["student"].get(split) for split in ("validation", "test")},
            "config": manifest["config"],
            "distillation": manifest["distillation"],
            "seed": manifest["seed"],
            "lineage": {**manifest["lineage"], "student_model": manifest_digest(manifest)},
        }
        url = join(settings.dir, "student")
        weights = load_file(str(folder / "weights.safetensors"))
        ids = dataset.user_ids(), dataset.item_ids()
        write_bundle(url, student.users, student.items, *ids, dataset.csr("train"), weights, metadata, item_map)
        _say(dataset, item_map)
        return {"url": url}

    run_stage(settings, "export", bundle_inputs(dataset, manifest), make)


def _say(dataset: Dataset, item_map: ItemMap | None) -> None:
    """Says what the bundle can do for items that nobody has touched."""
    if item_map is not None:
        facts = item_map.facts
        form = "whitened" if facts["whiten"] else "standardised"
        print(
            f"[export] new items: map of {', '.join(item_map.encodings)} ({form}) fitted on {facts['num_items']:,} items; train items of a "
            f"fold, ranked by it as if nobody had touched them: recall@{facts['list_length']} {facts['recall']:.4f}",
            flush=True,
        )
    elif dataset.modalities:
        print("[export] new items: too few items have both features and train interactions, so the bundle has no map", flush=True)


EXPORT: Verb[Settings] = Verb("export", export, ("run", "cluster"), products=("student",), needs=("evaluate",), is_stage=True)
