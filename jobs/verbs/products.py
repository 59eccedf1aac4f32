"""What every stage of a run leaves in its folder, which `run.redo` removes."""

from ..runs.stages import forget_from
from ..sections import STAGES
from ..settings import Settings
from .distill import DISTILL
from .evaluate import EVALUATE
from .export import EXPORT
from .inspect import INSPECT
from .label import LABEL
from .partition import PARTITION
from .plan import PLAN
from .prepare import PREPARE
from .recommend import RECOMMEND
from .train_teacher import TRAIN_TEACHER

STAGE_VERBS = (PREPARE, PARTITION, PLAN, TRAIN_TEACHER, LABEL, DISTILL, EVALUATE, EXPORT, RECOMMEND)
PRODUCTS: dict[str, tuple[str, ...]] = {verb.name: verb.products for verb in STAGE_VERBS}
PRODUCTS[PREPARE.name] += INSPECT.products  # what is said about a dataset goes with it
assert tuple(PRODUCTS) == STAGES, "the stages here, in their order, are those of jobs/sections.py"


def forget(settings: Settings) -> None:
    """Removes the results of the stage that `run.redo` names and of every stage after it.

    Raises:
        InputError: the source is not there, so that prepare could not be done again; nothing is removed then.
    """
    forget_from(settings, PRODUCTS)
