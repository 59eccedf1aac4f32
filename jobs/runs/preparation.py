"""The raw catalog -> dataset/: for the verb prepare, and for an experiment."""

from ...core.errors import InputError
from ...core.storage import JsonObject, join
from ...graph_store.catalog import COLD
from ...graph_store.dataset import open_dataset
from ...graph_store.dataset_writer import write_dataset
from ...graph_store.joined import write_joined
from ...graph_store.sources.formats import load_catalog, memory_bound
from ...graph_store.sources.kinds import SOURCES
from ...graph_store.splits import HoldOut
from ..settings import Settings
from .lineage import dataset_inputs
from .stages import run_stage

VALIDATE = (
    "hold some train interactions out: source.validation_from_train=0.1 where the source has splits, else a source.validation_ratio above 0"
)


def prepare_dataset(settings: Settings) -> None:
    """Writes the run's dataset/ unless it is there, and says what is in it.

    Raises:
        InputError: the source, one of its files or a row is wrong, a folder is named that the source's format does not read, or
            evaluation.cutoffs do not fit the catalog.
    """
    source = settings.source
    if source.format == "synthetic" and source.path is not None and source.joined is None:
        formats = ", ".join(name for name in SOURCES.names if name != "synthetic")
        raise InputError(
            f"source.path={source.path}: source.format=synthetic, the default, makes a catalog of its own and reads no folder; name the "
            f"format of this one, source.format={formats}, or leave source.path out"
        )
    inputs = dataset_inputs(settings)

    def make() -> JsonObject:
        url = join(settings.dir, "dataset")
        if settings.source.joined is not None:
            joined = open_dataset(settings.source.joined, settings.cluster.cache_dir)
            settings.evaluation.check_catalog(joined.num_items)
            manifest = write_joined(url, joined)
        else:
            print(f"[prepare] {memory_bound(settings.source)}", flush=True)
            catalog = load_catalog(settings.source)
            settings.evaluation.check_catalog(catalog.num_items)  # before anything is written
            manifest = write_dataset(url, catalog, inputs["source"], settings.source.memory_mib, HoldOut.of(settings.source))
        return {key: value for key, value in manifest.items() if key not in ("files", "source")}

    facts = run_stage(settings, "prepare", inputs, make).result
    counts = ", ".join(f"{split} {n:,}" for split, n in facts["num_interactions"].items())
    print(f"[prepare] {facts['num_users']:,} users, {facts['num_items']:,} items, interactions: {counts}", flush=True)
    if not facts["num_interactions"]["validation"] and settings.source.joined is None:
        print(f"[prepare] no validation split: no epoch, no setting and no weight of an ensemble can be chosen; {VALIDATE}", flush=True)
    if "num_cold_items" in facts:
        count, held_out = facts["num_cold_items"], facts["num_interactions"][COLD]
        print(f"[prepare] {count:,} cold items are held out whole, with {held_out:,} interactions: the split {COLD}", flush=True)
    for modality, info in facts["modalities"].items():
        print(f"[prepare] {modality}: {info['dim']}-d {info['dtype']}, {info['missing_rows']:,} items without a row", flush=True)
