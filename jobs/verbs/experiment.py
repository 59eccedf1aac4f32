"""`promptmm experiment`: many models and one report; the work is in `jobs/experiments/`."""

from ..experiments.settings import NOT_OF_CELLS, AnyRecipe, Recipe, describe_recipe, load_experiment
from ..runs.lease import lease
from .verb import Verb


def experiment(recipe: AnyRecipe) -> None:
    """A grid of models x seeds x ablations on Ray: searches and training on validation, one test pass at the end, one report."""
    from ..experiments.run import run_experiment  # the other verbs need no Ray to be there

    with lease(recipe.base.dir if isinstance(recipe, Recipe) else recipe.dir, "experiment"):
        run_experiment(recipe)


EXPERIMENT: Verb[AnyRecipe] = Verb(
    "experiment",
    experiment,
    ("run", "source", "teacher", "student", "distill", "labels", "evaluation", "cluster"),
    is_part_of_run=False,
    load=load_experiment,
    excluded=NOT_OF_CELLS,
    describe_recipe=describe_recipe,
)
