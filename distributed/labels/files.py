"""Names the folder of a revision's labels and describes its files."""

from ...core.storage import join

LabelFile = dict[str, str | int]  # a written file's `name`, `bytes`, `sha256`, and `rows`


def labels_url(run_url: str, revision: int) -> str:
    """Returns the URL of a revision's materialised labels."""
    return join(run_url, "labels", f"rev-{revision}")
