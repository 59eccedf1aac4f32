"""Names the folder of a revision's labels, and the work that makes its files."""

from ...core.storage import join

Work = dict[str, int]  # what a labeler is asked for: `epoch` and `block`, or `range`


def labels_url(run_url: str, revision: int) -> str:
    """Returns the URL of a revision's materialised labels."""
    return join(run_url, "labels", f"rev-{revision}")
