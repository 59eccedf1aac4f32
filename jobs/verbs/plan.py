"""`promptmm plan`: what the run will need, before anything expensive starts."""

from ..planning.description import describe_plan
from ..planning.engine import engine_of
from ..planning.hosts import available_memory
from ..planning.plan import make_plan, still_holds
from ..planning.record import read_plan, write_plan
from ..runs.folder import open_run_dataset
from ..settings import Settings
from .verb import Verb


def plan(settings: Settings) -> None:
    """Predicts what the run needs and refuses what cannot fit; written to plan.json."""
    dataset = open_run_dataset(settings)
    settings.evaluation.check_catalog(dataset.num_items)
    choice, available = engine_of(settings, dataset, "plan"), available_memory(settings)
    made = read_plan(settings.dir)
    if made is None or not still_holds(made, settings, dataset, available, choice):
        made = make_plan(settings, dataset, available, choice)
        write_plan(settings.dir, made)
    print(describe_plan(made), flush=True)


PLAN: Verb[Settings] = Verb(
    "plan",
    plan,
    ("run", "teacher", "sampling", "student", "distill", "labels", "graph", "cluster"),
    products=("plan.json",),
    needs=("prepare",),
    is_stage=True,
)
