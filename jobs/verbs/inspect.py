"""`promptmm inspect`: what the catalog is like and which settings it asks for, before anything is trained."""

import contextlib
import dataclasses
import time

from ...core.storage import join, write_bytes
from ...distributed.config import ClusterConfig
from ...distributed.worker import torch_threads
from ...graph_store.dataset import Dataset
from ..inspection.advice import Advice, advice_for
from ..inspection.facts import CatalogFacts, catalog_facts
from ..inspection.names import ranking_title
from ..inspection.page import page
from ..inspection.plots import FOLDER, write_plots
from ..inspection.record import read_facts, write_inspection
from ..runs.folder import open_run_dataset, saved_sections
from ..runs.preparation import VALIDATE
from ..settings import Settings, load_settings
from .prepare import PREPARE
from .verb import Verb, run_checked

OF_PREPARE = ("source", "evaluation")  # sections of the settings that decide whether dataset/ is what is asked for
OF_CLUSTER = ("threads", "cache_dir")  # all that work in one process reads of the section


def inspect(settings: Settings) -> None:
    """What the catalog is like, on train and validation, and which settings it asks for -> inspection.json, inspection.md, inspection/."""
    run_checked(PREPARE, settings)
    facts = facts_of(settings)
    advice = advice_for(facts)
    write_bytes(join(settings.dir, "inspection.md"), page(facts, advice, write_plots(settings.dir, facts)).encode())
    _show(settings, facts, advice)


def facts_of(settings: Settings) -> CatalogFacts:
    """Returns the facts of the run's prepared dataset: those of inspection.json, or new ones, which it then holds."""
    dataset = open_run_dataset(settings).without("test")
    facts = read_facts(settings.dir, dataset, settings.run.seed)
    if facts is None:
        threads = settings.cluster.threads
        with contextlib.nullcontext() if threads is None else torch_threads(threads):
            facts = _measure(settings, dataset)
    else:
        print("[inspect] already measured", flush=True)
    write_inspection(settings.dir, dataset, settings.run.seed, facts, advice_for(facts))
    return facts


def _measure(settings: Settings, dataset: Dataset) -> CatalogFacts:
    """Measures the facts, and says how long it took."""
    started = time.monotonic()
    facts = catalog_facts(dataset, settings.run.seed, lambda line: print(f"[inspect] {line}", flush=True))
    print(f"[inspect] done in {time.monotonic() - started:.1f} s", flush=True)
    return facts


def _show(settings: Settings, facts: CatalogFacts, advice: list[Advice]) -> None:
    """Prints a short summary."""
    print(
        f"{facts.num_interactions['train']:,} train interactions, {facts.users.quantile(0.5):,} a user in the median, density "
        f"{facts.density:.3%}; {facts.busy.count:,} busy users have {facts.busy.share:.0%} of them"
    )
    validation = facts.validation
    if validation is None:
        print(f"no validation split: nothing can be ranked or chosen; {VALIDATE}")
    else:
        best = validation.rankings[validation.best]
        print(
            f"best without training: {ranking_title(validation.best)}, recall@{validation.k} {best.recall:.4f} (± {best.error:.4f}; chance "
            f"{validation.chance:.4f}); {validation.cold_share:.1%} of the validation items are cold"
        )
    for one in advice:
        print(f"suggested: {one.word}: {one.because}")
    if not advice:
        print("suggested: nothing beside the defaults")
    print(f"page: {settings.dir}/inspection.md; facts: {settings.dir}/inspection.json", flush=True)


def load_inspected(recipe: str | None, overrides: list[str]) -> Settings:
    """Reads the settings; where a command names no source, it means the dataset that the run's folder has.

    Args:
        recipe, overrides: As of `load_settings`.
    """
    settings = load_settings(recipe, overrides)
    if recipe is not None:
        return settings
    given = {word.partition(".")[0].strip() for word in overrides}
    return dataclasses.replace(settings, **saved_sections(settings, [section for section in OF_PREPARE if section not in given]))


INSPECT: Verb[Settings] = Verb(
    "inspect",
    inspect,
    ("run", "source", "evaluation", "cluster"),
    products=("inspection.json", "inspection.md", FOLDER),
    load=load_inspected,
    excluded=tuple(f"cluster.{field.name}" for field in dataclasses.fields(ClusterConfig) if field.name not in OF_CLUSTER),
)
