"""What a verb declares: its name, what it does, which settings it reads, what it needs and what it leaves."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Generic, TypeAlias, TypeVar, cast

from ...core.errors import InputError
from ...core.storage import exists, join, remove
from ...distributed.execution.base import Executor
from ..config import Settings
from ..runs.folder import (
    need_shared_storage,
    read_configuration,
    resolved_configuration,
    warn_of_passing_folder,
    write_configuration,
)
from ..runs.lease import lease
from ..runs.leftovers import remove_leftovers
from ..runs.stages import read_record, record_url, require_done
from ..sections import STAGES
from ..settings import load_settings

Config = TypeVar("Config")


@dataclass(frozen=True)
class Verb(Generic[Config]):
    """One verb of the command line.

    The first line of the docstring of `run` is the verb's help. An own verb is such an object in a module of yours:

        SIZES = Verb("sizes", sizes, ("run", "cluster"), needs=("prepare",))  # in my_module.py, beside `def sizes(settings): ...`

    and `promptmm my_module:SIZES RECIPE key=value ...` runs it.

    Attributes:
        name: What the command line calls it.
        run: Does the work, from the verb's configuration; a stage that runs jobs also takes an executor that is open.
        sections: Sections of the settings that it reads: --help lists them, and config.yaml takes them over.
        products: What it leaves in the run's folder beside its record; `run.redo` removes it.
        needs: Stages that must have finished in the run's folder.
        is_stage: Whether it is a stage of a run, which `run.redo` may name.
        is_part_of_run: Whether it works in a run's folder, where its configuration is saved; else it runs by itself.
        shares_storage: Whether it runs in several processes, so that the run's folder cannot be in the memory of one.
        load: Reads its configuration from a recipe (None: no recipe) and `key=value` overrides.
        excluded: Dotted settings of its sections that it does not read.
        describe_recipe: Lists the keys of its recipe, where that is another than a run's.
        derives: Whether it takes its settings from the catalog's facts where no recipe is named.
        only_reads: Whether it writes nothing into the run's folder, so that it works beside another command and where nothing can be
            written; its settings are then not saved with the run.
    """

    name: str
    run: Callable[..., None]
    sections: tuple[str, ...]
    products: tuple[str, ...] = ()
    needs: tuple[str, ...] = ()
    is_stage: bool = False
    is_part_of_run: bool = True
    shares_storage: bool = False
    load: Callable[[str | None, list[str]], Config] = cast(Any, load_settings)
    excluded: tuple[str, ...] = ()
    describe_recipe: Callable[[], str] | None = None
    derives: bool = False
    only_reads: bool = False

    def __post_init__(self) -> None:
        unknown = sorted({*self.needs} - {*STAGES})
        if unknown:
            raise InputError(f"verb {self.name}: needs={', '.join(unknown)}: expected some of {', '.join(STAGES)}")

    @property
    def help(self) -> str:
        """One line for people."""
        return (self.run.__doc__ or "").strip().partition("\n")[0]


AnyVerb: TypeAlias = Verb[Any]  # of whatever configuration


def run_checked(verb: Verb[Settings], settings: Settings, executor: Executor | None = None) -> None:
    """Runs a verb where the run's folder has what it needs.

    Args:
        verb: The verb.
        settings: Of the run.
        executor: One that is open already, for a verb whose `run` takes one.

    Raises:
        InputError: a stage that it needs has not finished, the folder is one that its processes do not share, or the verb refuses its
            inputs. A first attempt that is refused before it made anything leaves no record, so that the next one may have other inputs.
    """
    if verb.shares_storage:
        need_shared_storage(settings, verb.name)
    for stage in verb.needs:
        require_done(settings.dir, stage, verb.name)
    is_first = verb.is_stage and read_record(settings.dir, verb.name) is None
    try:
        verb.run(settings) if executor is None else verb.run(settings, executor)
    except InputError:
        if is_first and not any(exists(join(settings.dir, product)) for product in verb.products):
            remove(record_url(settings.dir, verb.name))
        raise


def run_in_folder(verb: Verb[Settings], settings: Settings, forget: Callable[[Settings], None]) -> None:
    """Runs a verb that is part of a run: under the run's lease, with the resolved configuration saved with the run.

    Args:
        verb: The verb.
        settings: Of the run.
        forget: Removes what `run.redo` names.

    Raises:
        InputError: `run.redo` names another verb, another command works in the folder, or the verb refuses its settings; the
            configuration is then as it was.
    """
    if settings.run.redo not in (None, verb.name) and verb.name != "pipeline":
        raise InputError(
            f"run.redo={settings.run.redo}: {verb.name} does not do that verb again; use it with {settings.run.redo} or pipeline"
        )
    if verb.only_reads:
        run_checked(verb, settings)
        return
    with lease(settings.dir, verb.name):
        remove_leftovers(settings.dir)
        forget(settings)
        warn_of_passing_folder(settings)
        before = read_configuration(settings)
        write_configuration(settings, resolved_configuration(settings, verb.sections, before))
        try:
            run_checked(verb, settings)
        except InputError:  # refused: the folder still holds what the earlier configuration made
            if before is not None:
                write_configuration(settings, before)
            raise
