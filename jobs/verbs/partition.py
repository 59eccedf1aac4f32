"""`promptmm partition`: the dataset is cut into the parts that graph servers hold."""

from ...core.storage import JsonObject, join
from ...graph_store.graph_artifact import describe_part
from ...graph_store.partition_memory import describe_memory, memory_of
from ..runs.folder import open_run_dataset
from ..runs.lineage import graph_inputs
from ..runs.stages import run_stage
from ..settings import Settings
from .verb import Verb


def partition(settings: Settings) -> None:
    """dataset/ -> graph/."""
    dataset = open_run_dataset(settings)

    def make() -> JsonObject:
        from ...graph_store.dgl.partition import partition as write_partition  # a run in one process needs no DGL

        print(f"[partition] {describe_memory(memory_of(dataset, settings.graph))}", flush=True)
        facts = write_partition(dataset, join(settings.dir, "graph"), settings.graph)
        return {"num_parts": facts["num_parts"], "part_items": facts["part_items"], "parts": facts["parts"]}

    record = run_stage(settings, "partition", graph_inputs(settings, dataset), make)
    for part, facts in enumerate(record.result["parts"]):
        print(f"[partition] part {part}: {describe_part(facts)}", flush=True)


PARTITION: Verb[Settings] = Verb(
    "partition",
    partition,
    ("run", "graph", "cluster"),
    products=("graph",),
    needs=("prepare",),
    is_stage=True,
)
