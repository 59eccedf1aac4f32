"""What rankings are called on the page."""

from . import facts

TITLES = {
    facts.POPULARITY: "popularity",
    facts.POPULARITY_BUSY: "popularity among busy users",
    facts.POPULARITY_OTHERS: "popularity among the other users",
    facts.CO_OCCURRENCE: "co-occurrence counts",
    facts.CO_OCCURRENCE_OTHERS: "co-occurrence counts without busy users",
    facts.CO_OCCURRENCE_BALANCED: "co-occurrence, each user weighed by 1 / degree",
    facts.SPECTRAL: "spectral vectors",
}


def ranking_title(name: str) -> str:
    """The words for a ranking's name."""
    if name in TITLES:
        return TITLES[name]
    kind, _, modality = name.partition(":")
    return f"{modality} features, {'whitened' if kind == 'whitened' else 'standardised'}, cosine"
