"""What the facts mean, as paragraphs of the page; each is a function of the facts and says nothing where there is nothing to say."""

from .degrees import BUSY_FACTOR
from .facts import CO_OCCURRENCE, CO_OCCURRENCE_BALANCED, CO_OCCURRENCE_OTHERS, SPECTRAL, CatalogFacts, ValidationFacts, content
from .names import ranking_title

FEW_ITEMS, MANY_ITEMS = 5, 50  # train interactions of a user in the median
SMALL_SHARE, LARGE_SHARE = 0.1, 0.3  # of the train interactions, by busy users
NOTABLE = 0.01  # share of rows that are worth a sentence
NEAR_CHANCE = 0.52  # an AUC
COUNTS = (CO_OCCURRENCE, CO_OCCURRENCE_OTHERS, CO_OCCURRENCE_BALANCED)


def about_activity(facts: CatalogFacts) -> list[str]:
    """Dense or sparse."""
    median = facts.users.quantile(0.5)
    if median <= FEW_ITEMS:
        return [
            f"**A sparse catalog**: half of the users have at most {median:,} train interactions. A user's own items say little, so what "
            "other users did has to be brought in by propagation, and train pairs are soon learnt by heart: watch `l2`."
        ]
    if median >= MANY_ITEMS:
        return [
            f"**A dense catalog**: half of the users have at least {median:,} train interactions, which say much about a user. Compare "
            "what features find with what interactions find (below) before you give them weight."
        ]
    return [
        f"**Between sparse and dense**: a user has {median:,} train interactions in the median, enough to tell users apart, and few enough "
        "for other sources to add something."
    ]


def about_busy_users(facts: CatalogFacts) -> list[str]:
    """Hubs among the users."""
    busy, factor = facts.busy, f"more than {BUSY_FACTOR} times the mean of train interactions"
    if not busy.count:
        return [f"No user has {factor}: a loss over interactions weighs users nearly alike, and `user_balance` has little to change."]
    users = "1 user has" if busy.count == 1 else f"{busy.count:,} users have"
    text = f"{users} {factor} (*busy* users below), and {busy.share:.1%} of all. "
    if busy.share < SMALL_SHARE:
        return [text + "That is too little for them to decide a loss."]
    if busy.share < LARGE_SHARE:
        return [text + "Try `user_balance` on validation; no catalog that was measured lies here."]
    median = "" if facts.validation is None else f" Users with validation items have {facts.validation.median_train_items:,} in the median."
    return [
        f"{text}A mean over interactions is mostly about them, while metrics are means over users: weigh users alike (`user_balance`, or "
        f"`student.examples=users` and lists by user).{median}"
    ]


def about_errors(validation: ValidationFacts) -> list[str]:
    """Which differences mean anything."""
    low, high = validation.error_low, validation.error_high
    bounds = (
        f"{high:.4f}" if high - low < 5e-5 else f"between {low:.4f} (items found independently) and {high:.4f} (all or none of a user's)"
    )
    return [
        f"**Which differences count.** A recall of the best one's size has a standard error of {bounds} on these {validation.num_ranked:,} "
        "users. Two models that are ranked for the same users share a part of it; the column of differences has what is left, less for "
        "like models. A difference of less than two such errors says nothing, and one seed says less than that."
    ]


def about_cold_items(facts: CatalogFacts) -> list[str]:
    """Items that interactions cannot find."""
    validation = facts.validation
    if validation is None or not validation.cold_share:
        return []
    text = f"{validation.cold_share:.1%} of the validation items have no train interaction: no model of interactions can find them"
    if facts.modalities:
        return [f"{text}, only features can. With `teacher.modality_layers=0` an item keeps its own."]
    return [f"{text}, and this catalog has no features that could."]


def about_groups(validation: ValidationFacts) -> list[str]:
    """Where the hits of the best counts are."""
    best = max((name for name in COUNTS if name in validation.rankings), key=lambda name: validation.rankings[name].recall)
    total = sum(group.share * group.recall for group in validation.groups)
    common = [group for group in validation.groups if group.low > 40]
    if not total or not common:
        return []
    share, hits = sum(group.share for group in common), sum(group.share * group.recall for group in common) / total
    return [
        f"**Where the hits are** ({ranking_title(best)}): items with more than 40 train interactions are {share:.0%} of the validation "
        f"items and {hits:.0%} of those that are found."
    ]


def about_rows(facts: CatalogFacts) -> list[str]:
    """Rows that are missing, repeated or say nothing."""
    found = []
    for name, modality in facts.modalities.items():
        present = modality.share_present * facts.num_items
        if modality.share_present < 1 - NOTABLE:
            found.append(f"{1 - modality.share_present:.1%} of the items lack {name} features, and count as an average item there.")
        if present and modality.num_duplicates / present > NOTABLE:
            share = modality.num_duplicates / present
            found.append(
                f"{share:.1%} of the {name} rows repeat another: one item under several ids, or placeholders; leave the latter out."
            )
        if present and modality.num_constant_rows / present > NOTABLE:
            share = modality.num_constant_rows / present
            found.append(f"{share:.1%} of the {name} rows have one value in all columns and say nothing; leave them out of the source.")
    return [" ".join(found)] if found else []


def about_features(facts: CatalogFacts, validation: ValidationFacts) -> list[str]:
    """What content tells beside interactions."""
    rankings, found = validation.rankings, []
    of_interactions = max(ranking.recall for name, ranking in rankings.items() if ":" not in name)
    for modality in facts.modalities:
        plain, white = (rankings[content(modality, whiten)] for whiten in (False, True))
        auc, recall = max(plain.auc, white.auc), max(plain.recall, white.recall)
        if auc < NEAR_CHANCE:
            found.append(f"{modality}: barely above chance (AUC {auc:.3f}); it can be left out of `source.modalities`.")
        else:
            share = f"{recall / of_interactions:.0%} of the best recall by interactions" if of_interactions else "more than interactions"
            found.append(f"{modality}: AUC {auc:.3f}, {share}.")
    return [
        "A modality whose AUC is near .5 tells nothing about who wants what. Content that ranks far below interactions adds to a good "
        "model in its details and for cold items, if at all; content that comes near is worth a weight of its own. " + " ".join(found)
    ]


def about_spectrum(facts: CatalogFacts) -> list[str]:
    """Whether a few dimensions hold the graph."""
    validation, spectrum = facts.validation, facts.spectrum
    dim = len(spectrum.values)
    held = f"The first {dim:,} directions hold {spectrum.share(dim):.1%} of the graph."
    if validation is None:
        return [held]
    spectral, counts = (max(validation.rankings[n].recall for n in names if n in validation.rankings) for names in ((SPECTRAL,), COUNTS))
    if spectral >= counts:
        return [
            f"{held} As vectors they rank at {spectral:.4f}, co-occurrence counts at {counts:.4f}: taste lies in few directions, and small "
            "tables can hold it. `teacher.start=spectral` and `student.start=spectral` begin there, which saves epochs."
        ]
    return [
        f"{held} As vectors they rank at {spectral:.4f}, co-occurrence counts at {counts:.4f}: taste is local, in many small groups of "
        "items that few directions do not hold; a spectral start brings less than its size promises."
    ]
