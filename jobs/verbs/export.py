"""`promptmm export`: the bundle that serves, without Ray, DGL or DeepSpeed."""

from ...core.artifact import manifest_digest, open_artifact
from ...core.serving import write_bundle
from ...core.storage import JsonObject, join, read_json
from ...distributed.loop.stage import stage_url
from ..runs.folder import open_run_dataset
from ..runs.lineage import bundle_inputs
from ..runs.stages import run_stage
from ..settings import Settings
from .verb import Verb


def export(settings: Settings) -> None:
    """The trained student with ids, seen items, metrics and lineage -> student/, the serving bundle."""
    from safetensors.torch import load_file

    dataset = open_run_dataset(settings)
    folder, manifest = open_artifact(join(stage_url(settings.dir, "student"), "model"), "student-model", settings.cluster.cache_dir)
    results = read_json(join(settings.dir, "results.json"))

    def make() -> JsonObject:
        vectors = load_file(str(folder / "vectors.safetensors"))
        metadata = {
            "metrics": {split: results["student"].get(split) for split in ("validation", "test")},
            "config": manifest["config"],
            "distillation": manifest["distillation"],
            "seed": manifest["seed"],
            "lineage": {**manifest["lineage"], "student_model": manifest_digest(manifest)},
        }
        url = join(settings.dir, "student")
        weights = load_file(str(folder / "weights.safetensors"))
        write_bundle(url, vectors["user"], vectors["item"], dataset.user_ids(), dataset.item_ids(), dataset.csr("train"), weights, metadata)
        return {"url": url}

    run_stage(settings, "export", bundle_inputs(dataset, manifest), make)


EXPORT: Verb[Settings] = Verb("export", export, ("run", "cluster"), products=("student",), needs=("evaluate",), is_stage=True)
