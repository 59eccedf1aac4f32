"""inspection.md: the facts as a page for people, with what each of them means."""

from collections.abc import Iterable, Mapping, Sequence

from .advice import Advice
from .degrees import QUANTILES, Spread
from .facts import CatalogFacts, ValidationFacts, content
from .names import ranking_title
from .sentences import (
    about_activity,
    about_busy_users,
    about_cold_items,
    about_errors,
    about_features,
    about_groups,
    about_rows,
    about_spectrum,
)

RANKS = (16, 64, 128)


def page(facts: CatalogFacts, advice: Sequence[Advice], plots: Mapping[str, tuple[str, str]]) -> str:
    """Writes the page as Markdown.

    Args:
        facts: Of the catalog.
        advice: What they suggest.
        plots: File, relative to the page, and title of every plot, by its name (see `plots.py`).
    """
    pictures = {name: f"![{title}]({file})" for name, (file, title) in plots.items()}
    parts = [
        "# What the catalog is like, and what it asks for",
        "Measured on the train and validation interactions before anything is trained; the test split was not read.",
        "## What it suggests",
        *_advice(advice),
        "## Users, items and interactions",
        _sizes(facts),
        _degrees(facts),
        *about_activity(facts),
        *about_busy_users(facts),
        *_shown(pictures, "interactions"),
        "## What ranks the validation items without training",
        *_validation(facts),
        *_shown(pictures, "rankings", "groups"),
        *_modalities(facts),
        "## The train graph",
        *_spectrum(facts),
        *_shown(pictures, "spectrum"),
    ]
    return "\n\n".join(parts) + "\n"


def _shown(pictures: Mapping[str, str], *names: str) -> list[str]:
    """Those of the named pictures that there are."""
    return [pictures[name] for name in names if name in pictures]


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A Markdown table; the first column is text, the others are numbers."""
    lines = [head, ["---", *["---:"] * (len(head) - 1)], *rows]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in lines)


def _advice(advice: Sequence[Advice]) -> list[str]:
    """The settings with their reasons, and as words to copy."""
    if not advice:
        return [
            "Nothing in the facts asks for other settings than the defaults. The rules are few: they speak only where a measurement on a "
            "real catalog stands behind them (docs/accuracy.md)."
        ]
    rows = "\n".join(f"| `{one.word}` | {one.because} |" for one in advice)
    return [f"| setting | because |\n|---|---|\n{rows}", "As words of a command:\n\n```sh\n" + " ".join(a.word for a in advice) + "\n```"]


def _sizes(facts: CatalogFacts) -> str:
    return table(
        ["", "users", "items", "train", "validation", "density", "users without train", "items without train"],
        [
            [
                "number",
                f"{facts.num_users:,}",
                f"{facts.num_items:,}",
                f"{facts.num_interactions['train']:,}",
                f"{facts.num_interactions['validation']:,}",
                f"{facts.density:.3%}",
                f"{facts.users_without_train:,}",
                f"{facts.items_without_train:,}",
            ]
        ],
    )


def _degrees(facts: CatalogFacts) -> str:
    """Degrees of both sides."""
    named = {0.0: "least", 0.5: "median", 1.0: "most"}
    columns = [named.get(share, f"{share:.0%}") for share in QUANTILES]

    def row(name: str, spread: Spread) -> list[str]:
        degrees = [f"{degree:,}" for degree in spread.quantiles]
        return [name, f"{spread.mean:.1f}", *degrees, f"{spread.gini:.2f}", f"{spread.share_of_heaviest(0.01):.0%}"]

    head = ["train interactions of", "mean", *columns, "Gini", "share of the top 1 %"]
    return table(head, [row("a user", facts.users), row("an item", facts.items)])


def _validation(facts: CatalogFacts) -> list[str]:
    """The rankings, what differences mean, and where hits are."""
    validation = facts.validation
    if validation is None:
        return [
            "The catalog has no validation split, so nothing here can be ranked, no epoch can be selected and no setting chosen. Hold "
            "some train interactions out (`source.validation_from_train=0.1` where the source has splits, else a `source.validation_ratio` "
            "above 0); `promptmm refit` trains on them, too, once all is chosen."
        ]
    who = f"all {validation.num_users:,} users that have validation items"
    if validation.num_ranked < validation.num_users:
        who = f"a seeded sample of {validation.num_ranked:,} of the {validation.num_users:,} users that have validation items"
    intro = (
        f"Recall@{validation.k} as training and evaluation compute it (mean over users, all items ranked, train items masked, of equal "
        f"scores the lower index first), over {who}, with its standard error. AUC is the share of other items that a validation item "
        f"beats. In random order the recall is {validation.chance:.4f} and the AUC .5."
    )
    return [
        intro,
        _rankings(validation),
        *about_errors(validation),
        *about_cold_items(facts),
        *about_groups(validation),
        _groups(validation),
    ]


def _rankings(validation: ValidationFacts) -> str:
    best = validation.rankings[validation.best]
    rows = []
    for name, ranking in sorted(validation.rankings.items(), key=lambda one: -one[1].recall):
        difference = "" if ranking is best else f"{ranking.recall - best.recall:+.4f} ± {ranking.difference_error:.4f}"
        rows.append([ranking_title(name), f"{ranking.recall:.4f} ± {ranking.error:.4f}", difference, f"{ranking.auc:.3f}"])
    return table(["", f"Recall@{validation.k}", "difference from the best", "AUC"], rows)


def _groups(validation: ValidationFacts) -> str:
    head = ["train interactions with users that are not busy", "share of the validation items", "found among these"]
    return table(head, [[group.title, f"{group.share:.1%}", f"{group.recall:.1%}"] for group in validation.groups])


def _modalities(facts: CatalogFacts) -> list[str]:
    """Rows and rankings of every modality."""
    if not facts.modalities:
        return ["## Features", "The catalog has none: the student trains alone, on interactions."]
    head = ["", "dimensions", "items with a row", "repeated rows", "constant rows", "constant columns", "effective dimensions"]
    rows = [
        [
            name,
            f"{m.dim:,}",
            f"{m.share_present:.1%}",
            f"{m.num_duplicates:,}",
            f"{m.num_constant_rows:,}",
            f"{m.num_constant_columns:,}",
            f"{m.effective_dim:.1f}",
        ]
        for name, m in facts.modalities.items()
    ]
    parts = ["## Features", table(head, rows), *about_rows(facts)]
    if facts.validation is not None:
        parts += [_content(facts, facts.validation), *about_features(facts, facts.validation)]
    return parts


def _content(facts: CatalogFacts, validation: ValidationFacts) -> str:
    """Each modality's cosines, standardised and whitened."""
    head, rows = ["cosine to the user's items", f"Recall@{validation.k}", "whitened", "AUC", "whitened"], []
    has_cold = any(ranking.auc_cold is not None for ranking in validation.rankings.values())
    if has_cold:
        head += ["AUC of cold items", "whitened"]
    for name in facts.modalities:
        pair = [validation.rankings[content(name, whiten)] for whiten in (False, True)]
        cold = [f"{r.auc_cold:.3f}" for r in pair if r.auc_cold is not None]
        rows.append([name, *(f"{r.recall:.4f} ± {r.error:.4f}" for r in pair), *(f"{r.auc:.3f}" for r in pair), *cold])
    return table(head, rows)


def _spectrum(facts: CatalogFacts) -> list[str]:
    spectrum = facts.spectrum
    ranks = [rank for rank in RANKS if rank <= len(spectrum.values)] or [len(spectrum.values)]
    head = ["effective rank", *(f"singular value {rank}" for rank in ranks), *(f"share of the first {rank}" for rank in ranks)]
    values = [
        f"{spectrum.effective_rank:,.1f}",
        *(f"{spectrum.values[r - 1]:.3f}" for r in ranks),
        *(f"{spectrum.share(r):.1%}" for r in ranks),
    ]
    return [
        "Singular values of Ã = D_U^-1/2 A D_I^-1/2, of which the largest is 1. The effective rank is the sum of their squares: as many "
        "equal directions would hold as much.",
        table(head, [values]),
        *about_spectrum(facts),
    ]
