"""Declares the settings of a teacher that was trained elsewhere."""

from dataclasses import dataclass

from ..errors import InputError
from ..settings import check_bounds, setting
from ..storage import is_local, local_path


@dataclass(frozen=True)
class VectorsConfig:
    """Names the vectors of a teacher that was trained elsewhere (docs/method.md 7.3); section `teacher.vectors`.

    A local path is made absolute, since workers have working directories of their own.
    """

    users: str | None = setting(
        None,
        "URL of the users' vectors: a Parquet file, or a folder of them, that every worker reaches, with the columns user, final and, if "
        "there are vectors by modality, modal.<modality>; read by vectors",
    )
    items: str | None = setting(None, "the same of the items, with the column item in place of user; read by vectors")
    unit_scores: bool = setting(
        False,
        "scale every user's final vector so that its scores have the standard deviation 1 over all items, which the temperatures of "
        "distillation are made for; rankings stay as they are; read by vectors",
    )

    def __post_init__(self) -> None:
        check_bounds(self, "teacher.vectors")
        for name in ("users", "items"):
            url = getattr(self, name)
            if url is None:
                continue
            if not url.strip():
                raise InputError(f"teacher.vectors.{name}={url!r}: name a Parquet file, or leave it out")
            if is_local(url):
                object.__setattr__(self, name, str(local_path(url)))

    @property
    def urls(self) -> tuple[str, ...]:
        """Returns the URLs that are set, the users' first."""
        return tuple(url for url in (self.users, self.items) if url is not None)
