"""The verbs that a person runs: one file each, and one table of them."""

from .table import VERBS, find_verb, run_verb
from .verb import Verb

__all__ = ["VERBS", "Verb", "find_verb", "run_verb"]
