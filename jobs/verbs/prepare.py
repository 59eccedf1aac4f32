"""`promptmm prepare`: the raw catalog becomes the canonical dataset."""

from ..runs.preparation import prepare_dataset
from ..settings import Settings
from .verb import Verb


def prepare(settings: Settings) -> None:
    """The raw catalog -> dataset/."""
    prepare_dataset(settings)


PREPARE: Verb[Settings] = Verb("prepare", prepare, ("run", "source", "evaluation"), products=("dataset",), is_stage=True)
