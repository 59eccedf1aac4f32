"""A run's folder: its dataset, its saved configuration, and where it may lie."""

from collections.abc import Collection
from typing import Any

from ...core.config import as_dict
from ...core.errors import InputError
from ...core.redaction import redacted_tree
from ...core.storage import exists, join, read_bytes, write_bytes
from ...graph_store.dataset import Dataset, open_dataset
from ..settings import CONFIGURATION, Settings, build
from ..yaml_text import read_yaml


def open_run_dataset(settings: Settings) -> Dataset:
    """Opens the run's dataset/.

    Raises:
        InputError: it is missing or damaged.
    """
    return open_dataset(join(settings.dir, "dataset"), settings.cluster.cache_dir)


def need_shared_storage(settings: Settings, verb: str) -> None:
    """Raises InputError where the run's folder is in the memory of this process, and a verb runs in several."""
    if settings.dir.startswith("memory://") and settings.cluster.executor != "local":
        raise InputError(
            f"run.dir={settings.dir}: {verb} runs in several processes, which share no memory; use a folder or an object store"
        )


def warn_of_passing_folder(settings: Settings) -> None:
    """Warns where Ray will remove the run's folder in time."""
    if "/working_dir_files/" in settings.dir:
        print(
            f"warning: run.dir={settings.dir} lies in Ray's copy of the working directory, which Ray removes in time; set run.dir to an "
            "absolute folder or a URL that every host reaches",
            flush=True,
        )


def read_configuration(settings: Settings) -> bytes | None:
    """Reads the run's config.yaml; None where no verb has saved it yet."""
    url = _configuration_url(settings)
    return read_bytes(url) if exists(url) else None


def write_configuration(settings: Settings, text: bytes) -> None:
    """Writes the run's config.yaml."""
    write_bytes(_configuration_url(settings), text)


def resolved_configuration(settings: Settings, sections: Collection[str], before: bytes | None) -> bytes:
    """Resolves the configuration to save, as YAML.

    A later verb replaces the sections that it reads and no others: `recommend` must not forget how the teacher was trained.

    Args:
        settings: Of this command.
        sections: Those that its verb reads.
        before: The configuration that is saved, None where there is none.
    """
    import yaml

    values = as_dict(settings)
    values["run"]["redo"] = None  # said once, not a property of the run
    if before is not None:
        values = {**values, **read_yaml(before, _configuration_url(settings)), **{section: values[section] for section in sections}}
    return yaml.safe_dump(redacted_tree(values), sort_keys=False).encode()


def saved_sections(settings: Settings, sections: Collection[str]) -> dict[str, Any]:
    """Reads some sections of the configuration that the run's folder has.

    Args:
        settings: Name the folder.
        sections: Names of sections.

    Returns:
        The sections' settings by name; those that no verb has saved yet are left out.

    Raises:
        InputError: a saved value is not one that the setting can have.
    """
    saved = read_configuration(settings)
    values = {} if saved is None else read_yaml(saved, _configuration_url(settings))
    return {name: build(type(getattr(settings, name)), values[name]) for name in sections if name in values}


def _configuration_url(settings: Settings) -> str:
    return join(settings.dir, CONFIGURATION)
