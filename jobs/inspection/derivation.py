"""The recipe of a run that names none: derived.yaml in the run's folder, made from the catalog's facts, with the reasons as comments."""

import textwrap
from collections.abc import Sequence

from ...core.redaction import redacted_tree
from ...core.storage import JsonObject, join, write_bytes
from ..settings import DERIVED
from .advice import Advice

WIDTH = 120


def write_derived(run_dir: str, advice: Sequence[Advice]) -> str:
    """Writes derived.yaml; returns its URL. Commands without a recipe in the same folder read it (`jobs.settings.load_settings`)."""
    url = join(run_dir, DERIVED)
    write_bytes(url, recipe_of(advice, "The settings of this run, derived from the facts of its catalog (inspection.md).").encode())
    return url


def recipe_of(advice: Sequence[Advice], title: str) -> str:
    """Returns a recipe in YAML: each reason as a comment, once, with the settings that it is for."""
    import yaml

    lines = textwrap.wrap(title, WIDTH, initial_indent="# ", subsequent_indent="# ")
    reasons: dict[str, list[str]] = {}
    for one in advice:
        reasons.setdefault(one.because, []).append(one.setting)
    for because, settings in reasons.items():
        lines += textwrap.wrap(f"{', '.join(settings)}: {because}.", WIDTH, initial_indent="# - ", subsequent_indent="#   ")
    values: JsonObject = {}
    for one in advice:
        *path, last = one.setting.split(".")
        section = values
        for part in path:
            section = section.setdefault(part, {})
        section[last] = one.value
    return "\n".join(lines) + "\n" + yaml.safe_dump(redacted_tree(values), sort_keys=False)
