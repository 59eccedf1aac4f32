"""The source formats by name: `source.format`.

Your own format is a function in a module of yours, `source.format=my_module:load`. It gets the `SourceConfig` (path, modalities, ...) and
returns a `Catalog`:

    def load(config: SourceConfig) -> Catalog:
        log = pd.read_json(f"{config.path}/log.json", lines=True)
        users, items = pd.factorize(log["user"]), pd.factorize(log["item"])
        ids = ids_of(users[1].astype(str)), ids_of(items[1].astype(str))
        return Catalog(*ids, Unsplit((users[0], items[0]), config))

Here `Unsplit` (of `graph_store.catalog`) leaves the split to `source.split`. Where the settings should be checked before anything is read,
name a `Source` in place of the function.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from ...core.registry import Registry


@dataclass(frozen=True)
class Source:
    """A format of raw catalogs.

    Attributes:
        load: (SourceConfig) -> Catalog. It raises InputError where a file is missing, damaged or inconsistent; the message names the
            file, and the row or the setting.
        needs_path: Whether it reads the folder in `source.path`.
        own_modalities: Whether its modalities are not those of `source.modalities`, which may only be {} then, for none.
        has_times: Whether it can have times, for `source.split=time`.
        reads_whole: Whether all interactions are in memory at a time, whatever `source.memory_mib` is.
    """

    load: Callable[..., Any]
    needs_path: bool = True
    own_modalities: bool = False
    has_times: bool = True
    reads_whole: bool = False


SOURCES: Registry[Source | Callable[..., Any]] = Registry(
    what="source format",
    setting="source.format",
    shipped={
        "parquet": ".parquet:SOURCE",
        "mmrec": ".mmrec:SOURCE",
        "promptmm": ".promptmm:SOURCE",
        "diffmm": ".diffmm:SOURCE",
        "lightgcn": ".lightgcn:SOURCE",
        "synthetic": ".synthetic:SOURCE",
    },
    package=__package__,
    accepts=lambda kind: isinstance(kind, Source) or callable(kind),
    expected="a function that returns a Catalog, or a promptmm.graph_store.sources.kinds.Source",
)


def source_of(format: str) -> Source:
    """Finds a format; of an own function nothing is asked.

    Args:
        format: The name of a format that ships, or `module:attribute`.

    Raises:
        InputError: there is no such format.
    """
    kind = SOURCES.get(format)
    return kind if isinstance(kind, Source) else Source(kind, needs_path=False, reads_whole=True)
