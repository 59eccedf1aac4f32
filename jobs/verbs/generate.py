"""`promptmm generate`: a synthetic catalog of any size."""

from ...core.errors import InputError
from ...graph_store.sources.synthetic_writer import write_synthetic
from ..settings import Settings
from .verb import Verb


def generate(settings: Settings) -> None:
    """Writes the synthetic catalog that source.synthetic_* describes to source.path, as Parquet, at any size."""
    config = settings.source
    if config.path is None or config.format != "synthetic":
        raise InputError("generate needs source.format=synthetic, and the catalog's folder in source.path")
    facts = write_synthetic(config, config.path)
    counts = f"{facts['num_users']:,} users, {facts['num_items']:,} items, {facts['num_interactions']:,} interactions"
    print(f"[generate] {counts} in {config.path}", flush=True)
    files = ", ".join(f"{modality}: {file}" for modality, file in facts["modalities"].items())
    print(f"[generate] next: promptmm prepare source.format=parquet source.path={config.path} source.modalities='{{{files}}}'", flush=True)


GENERATE: Verb[Settings] = Verb("generate", generate, ("source",), is_part_of_run=False)
