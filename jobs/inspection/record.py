"""inspection.json: the facts of a run's dataset, with the advice that follows from them."""

from collections.abc import Sequence
from dataclasses import asdict

from ...core.storage import JsonObject, exists, join, read_json, write_json
from ...graph_store.dataset import Dataset
from .advice import Advice
from .facts import CatalogFacts

SCHEMA_VERSION = 1


def facts_inputs(dataset: Dataset, seed: int) -> JsonObject:
    """What the facts depend on."""
    return {"dataset": dataset.digest, "seed": seed}


def read_facts(run_dir: str, dataset: Dataset, seed: int) -> CatalogFacts | None:
    """Reads the facts of the run's inspection.json.

    Returns:
        The facts; None where there are none, or those of another dataset, another seed or another version.

    Raises:
        InputError: the file is damaged.
    """
    url = join(run_dir, "inspection.json")
    values = read_json(url) if exists(url) else {}
    if values.get("schema_version") != SCHEMA_VERSION or values.get("made_with") != facts_inputs(dataset, seed):
        return None
    return CatalogFacts.from_json(values["facts"])


def write_inspection(run_dir: str, dataset: Dataset, seed: int, facts: CatalogFacts, advice: Sequence[Advice]) -> None:
    """Writes the run's inspection.json."""
    values = {"schema_version": SCHEMA_VERSION, "made_with": facts_inputs(dataset, seed), "facts": asdict(facts)}
    write_json(join(run_dir, "inspection.json"), {**values, "advice": [asdict(one) for one in advice]})
