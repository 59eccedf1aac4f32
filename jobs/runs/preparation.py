"""The raw catalog -> dataset/: for the verb prepare, and for an experiment."""

from ...core.storage import JsonObject, join
from ...graph_store.catalog import COLD
from ...graph_store.dataset_writer import write_dataset
from ...graph_store.sources.formats import load_catalog, memory_bound
from ...graph_store.splits import HoldOut
from ..settings import Settings
from .lineage import dataset_inputs
from .stages import run_stage


def prepare_dataset(settings: Settings) -> None:
    """Writes the run's dataset/ unless it is there, and says what is in it.

    Raises:
        InputError: the source, one of its files or a row is wrong, or evaluation.cutoffs do not fit the catalog.
    """
    inputs = dataset_inputs(settings)

    def make() -> JsonObject:
        print(f"[prepare] {memory_bound(settings.source)}", flush=True)
        url, catalog = join(settings.dir, "dataset"), load_catalog(settings.source)
        manifest = write_dataset(url, catalog, inputs["source"], settings.source.memory_mib, HoldOut.of(settings.source))
        settings.evaluation.check_catalog(manifest["num_items"])
        return {key: value for key, value in manifest.items() if key not in ("files", "source")}

    facts = run_stage(settings, "prepare", inputs, make).result
    counts = ", ".join(f"{split} {n:,}" for split, n in facts["num_interactions"].items())
    print(f"[prepare] {facts['num_users']:,} users, {facts['num_items']:,} items, interactions: {counts}", flush=True)
    if not facts["num_interactions"]["validation"] and not settings.source.join_validation:
        print(
            "[prepare] no validation split: no epoch, no setting and no weight of an ensemble can be chosen; "
            "source.validation_from_train=0.1 holds a tenth of every user's train interactions out for that",
            flush=True,
        )
    if "num_cold_items" in facts:
        count, held_out = facts["num_cold_items"], facts["num_interactions"][COLD]
        print(f"[prepare] {count:,} cold items are held out whole, with {held_out:,} interactions: the split {COLD}", flush=True)
    for modality, info in facts["modalities"].items():
        print(f"[prepare] {modality}: {info['dim']}-d {info['dtype']}, {info['missing_rows']:,} items without a row", flush=True)
