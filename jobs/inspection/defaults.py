"""The settings of a run that names no recipe: a function of the catalog's facts, with the reason of each (docs/accuracy.md).

Where `advice.py` says which single settings a catalog asks for beside given ones, this module builds a whole recipe: the teachers that are
added up, how they learn, and the student that learns lists from them.
"""

from collections.abc import Iterator
from typing import Any

from .advice import BUSY_SHARE, Advice, Value
from .facts import CatalogFacts

FEW_ITEMS = 3  # train items of a user in the median, up to which BPR, which knows popularity, is better than cosines (2: TikTok; 4: Sports)
EASE_ITEMS = 8_000  # from there on the inverses of matrices of items by items that its search takes need minutes
EXAMPLES = 900_000  # lists that are labelled at least: few lists that come again and again are learnt by heart
MOST_LABEL_EPOCHS = 30
STEPS, PATIENT_STEPS = 1_200, 200  # of the student, about: in all, and without a better validation before patience ends it
# Of the student where users have few items: a longer training is closer to its teacher, and validation is mostly luck
FEW_STEPS, FEW_EVALUATE_EVERY = 2_600, 5

GRAPH_ITEMS, DENSE_ITEMS = 12, 60  # train items of a user in the median: below, tables without a graph fall behind; above, it adds nothing
SOFTMAX: dict[str, Value] = {"dim": 256, "loss": "softmax", "l2": 0.0, "feature_decay": 0.0, "init_scale": 0.1}
SOFTMAX_TRAIN: dict[str, Value] = {"epochs": 40, "lr_decay": 0.97, "learning_rate": 0.01}
SOFTMAX_PATIENCE = 4  # epochs
SOFTMAX_STEPS, LEAST_BATCH = 20, 2048  # steps in an epoch, about; train interactions in a step at least
MOST_BATCH, MOST_SAMPLED_BATCH = 1 << 16, 1 << 14  # in a step at most; blocks of the sampled engine grow with it
EXACT_ITEMS, DRAWN_ITEMS = 8192, 4096  # a softmax is over all of up to EXACT_ITEMS items, else over DRAWN_ITEMS of them
TABLE_ROWS = 25_000  # users and items, up to which a table shows in a minute which temperature is right
HISTORY_SCORES = 1 << 32  # users times items, up to which all scores can be computed from histories, several times, within an hour
LARGE_BLOCK = 1 << 18  # examples in a label block there
LARGE_DIM = 256  # of the student on larger catalogs: 128 columns hold .95 of what 256 do on Gowalla, .96 on Sports
FEW_TRIALS = 10  # of a filter's settings on larger catalogs, where each takes many seconds, and where users have few items
SPECTRAL_NEIGHBOURS = 400  # similarities of an item that the spectral filter keeps there
TEMPERATURES = {"mf-20": 0.2, "mf-13": 0.13, "mf-30": 0.3}  # the best one differs by catalog: .3, .2 and .13 on three
# Where tables do not show it, some epochs of the graph's model do. After three of them .1 is ahead on Sports, where it ends at .098 and .2
# at .106; after eight .2 is. On Gowalla .1 is ahead from the second on.
GRAPH_TEMPERATURES = {"lightgcn-20": 0.2, "lightgcn-15": 0.15, "lightgcn-10": 0.1}
TEMPERATURE_EPOCHS = 8
LARGE_TEMPERATURE = 0.15  # where nothing shows it
LARGE_EVALUATE_EVERY = 2  # epochs: all users' rankings take as long as an epoch there
FEW: dict[str, Value] = {"dim": 256, "layers": 4, "init_scale": 0.01, "l2": 0.007}  # depth matters most where a user has two items
FEW_TRAIN: dict[str, Value] = {
    "epochs": 30,
    "batch_size": 4096,
    "learning_rate": 0.015,
    "lr_decay": 0.97,
    "evaluate_every": 3,  # users with one held-out item make a noisy metric: the more epochs are looked at, the more luck is chosen
    "patience": 3,
}
BESIDE: dict[str, Value] = {  # features beside the collaborative vectors, for users with few items
    "fusion": "concat",
    "fusion_weight": 2.5,
    "modality_layers": 0,
    "whiten": True,
    "leave_one_out": True,
    "feature_temperature": 0.1,
    "feature_loss_weight": 1.0,
    "feature_decay": 0.0,
    "id_prompt_weight": 0.0,
    "reduction_learning_rate": 0.002,
}


def defaults_for(facts: CatalogFacts, fits: bool = True) -> list[Advice]:
    """Lists the settings of a run without a recipe; a function of the facts. The settings are set together.

    Args:
        facts: Of the catalog.
        fits: Whether a worker holds the whole train graph (the full engine); else the sampled engine trains one teacher over its parts.
    """
    if not fits and not facts.modalities:
        why = "the train graph fits no single worker, and without features there is no teacher that trains on parts of it"
        return [Advice("distill.use_teacher", False, why), Advice("student.kind", "lightgcn", why)]
    return [*_teacher(facts, fits), *_student(facts, fits)]


def has_few_items(facts: CatalogFacts) -> bool:
    """Whether users have so few train items that their rankings rest on popularity as much as on taste."""
    return _median_items(facts) <= FEW_ITEMS


def keeps_histories(facts: CatalogFacts) -> bool:
    """Whether a teacher scores histories by similarities of items: on larger catalogs no vectors hold what those rank."""
    return _compares_items(facts) and not _is_small(facts) and not _is_sparse(facts)


def _compares_items(facts: CatalogFacts) -> bool:
    """Whether all pairs of items can be compared, and all histories be scored by their similarities, several times within an hour."""
    return facts.num_users * facts.num_items <= HISTORY_SCORES


def _is_sparse(facts: CatalogFacts) -> bool:
    """Whether users have so few train items that similarities of items are mostly chance, which a low rank smooths."""
    return _median_items(facts) < GRAPH_ITEMS


def _is_small(facts: CatalogFacts) -> bool:
    """Whether plain tables of the users and items train within a minute."""
    return facts.num_users + facts.num_items <= TABLE_ROWS


def _median_items(facts: CatalogFacts) -> int:
    """Returns the median of the train items of the users who are tested, or of all users without a validation split."""
    return facts.validation.median_train_items if facts.validation is not None else int(facts.users.quantile(0.5))


def _teacher(facts: CatalogFacts, fits: bool) -> Iterator[Advice]:
    trained = "promptmm" if facts.modalities else "lightgcn"
    if fits:
        yield from _components(facts, trained)
    else:
        yield Advice("teacher.kind", trained, "the train graph fits no single worker: one teacher is trained over its parts")
    median, few = _median_items(facts), has_few_items(facts)
    if few:
        why = f"users have {median} train items in the median: too few for cosines, while BPR learns popularity with taste, and depth helps"
    else:
        why = f"users have {median} train items in the median: a softmax over items on cosines learns more from them than BPR on pairs"
    for name, value in (FEW if few else SOFTMAX).items():
        yield Advice(f"teacher.{name}", value, why)
    if not few:
        yield from _softmax(facts, fits)
    if facts.modalities and not few:
        yield Advice("teacher.whiten", True, "the columns of the features are decorrelated, so that no few loud directions decide")
    if facts.modalities and few:
        for name, value in BESIDE.items():
            yield Advice(f"teacher.{name}", value, _why_beside(facts))
    if facts.busy.share >= BUSY_SHARE:
        yield Advice("teacher.user_balance", 0.5, f"{facts.busy.count:,} users have {facts.busy.share:.0%} of the interactions")
    for name, value in (FEW_TRAIN if few else SOFTMAX_TRAIN).items():
        yield Advice(f"teacher.train.{name}", value, why)
    if not few:
        every = 1 if _is_small(facts) else LARGE_EVALUATE_EVERY
        seldom = (
            f"{SOFTMAX_PATIENCE} epochs without a gain are enough, and ranking all users takes about as long as an epoch on larger catalogs"
        )
        yield Advice("teacher.train.evaluate_every", every, seldom)
        yield Advice("teacher.train.patience", SOFTMAX_PATIENCE // every, seldom)
        yield _softmax_batch(facts.num_interactions["train"], MOST_BATCH if fits else MOST_SAMPLED_BATCH)


def _softmax(facts: CatalogFacts, fits: bool) -> Iterator[Advice]:
    """Yields what makes a softmax over many items cheap: whole histories in a batch, whose users are scored once each."""
    if not fits:
        yield Advice(
            "teacher.temperature", LARGE_TEMPERATURE, "the catalog is large: a lower temperature than the default was right on larger ones"
        )
        return
    rows = "users come with all of their items at a time, so that a step scores few users, each once, with many items"
    yield Advice("teacher.examples", "histories", rows)
    items = EXACT_ITEMS if facts.num_items <= EXACT_ITEMS else DRAWN_ITEMS
    drawn = "all" if facts.num_items <= items else f"{items:,} drawn"
    yield Advice("teacher.softmax_items", items, f"{drawn} of the {facts.num_items:,} items are compared in every step")


def _components(facts: CatalogFacts, trained: str) -> Iterator[Advice]:
    """Yields the ensemble of what the catalog has something for."""
    median, few = _median_items(facts), has_few_items(facts)
    components: dict[str, dict[str, Any]] = {}
    small = _is_small(facts)
    tables = median >= GRAPH_ITEMS and small
    shown = not tables and not few
    if tables:
        components |= {name: {"kind": "mf", "temperature": temperature} for name, temperature in TEMPERATURES.items()}
    if shown:
        train = {"epochs": TEMPERATURE_EPOCHS, "evaluate_every": TEMPERATURE_EPOCHS}
        for name, temperature in GRAPH_TEMPERATURES.items():
            components[name] = {"kind": "lightgcn", "temperature": temperature, "weight": 0, "train": dict(train)}
    if median <= DENSE_ITEMS or not tables:
        components[trained] = {"temperature": None} if tables or shown else {}
    if few:
        components[f"{trained}-2"] = {"kind": trained, "seed": 1}
    filters: dict[str, Any] = {"linear": {"trials": FEW_TRIALS}} if few or not small else {}
    if keeps_histories(facts):
        components["spectral"] = {"linear": {"filter": "neighbourhood", "neighbours": SPECTRAL_NEIGHBOURS, "trials": FEW_TRIALS}}
        components["rp3beta"] = {"linear": {"rank": 0, "trials": FEW_TRIALS}}
    elif _is_sparse(facts) and _compares_items(facts):
        components |= {kind: {"linear": {"trials": FEW_TRIALS}} for kind in ("rp3beta", "item_knn")}
        if not few:
            components["spectral"] = {"linear": {"trials": FEW_TRIALS}}
    else:
        components |= {"polynomial": dict(filters), "spectral": dict(filters)}
    if facts.num_items <= EASE_ITEMS and not few:
        components["ease"] = {}
    if facts.modalities:
        components["content"] = {}
    why = "models that differ find other items: their scores are added up, and validation gives each its weight, or none"
    yield Advice("teacher.kind", "ensemble", why)
    yield Advice("teacher.components", components, _why_components(facts, trained, tables))


def _softmax_batch(interactions: int, most: int) -> Advice:
    """Returns the batch size that makes about as many steps in an epoch on every catalog, within what a step's memory allows."""
    batch = min(most, max(LEAST_BATCH, -(-interactions // SOFTMAX_STEPS // 1024) * 1024))
    return Advice("teacher.train.batch_size", batch, f"{interactions:,} interactions make {-(-interactions // batch)} steps an epoch")


def _why_components(facts: CatalogFacts, trained: str, tables: bool) -> str:
    median = _median_items(facts)
    if tables and median > DENSE_ITEMS:
        text = f"users have {median} train items in the median: tables of vectors learn from them what a graph would bring, in seconds"
    else:
        text = f"the catalog {'has' if facts.modalities else 'has no'} features, so {trained} is trained"
    if tables:
        text += f"; three tables (mf) show which temperature fits{'' if median > DENSE_ITEMS else f', and {trained} takes the best one'}"
    elif not has_few_items(facts):
        text += f"; some epochs of lightgcn at {len(GRAPH_TEMPERATURES)} temperatures, which are no part of the sum, show which one fits"
    if has_few_items(facts):
        text += f"; {trained} is trained twice, since with few items a user two trainings find other items"
    if keeps_histories(facts):
        text += "; rp3beta and spectral keep similarities of items, since no vectors of a few hundred columns hold what these rank here"
        text += ", and leave nothing to a polynomial of the same graph"
    elif _is_sparse(facts) and _compares_items(facts):
        text += "; rp3beta and item_knn compare items by the few users that they share, which a rank that validation chooses smooths"
    if facts.num_items > EASE_ITEMS:
        text += f"; EASE is left out, since a matrix of {facts.num_items:,} by {facts.num_items:,} items is too large"
    return text


def _why_beside(facts: CatalogFacts) -> str:
    names = ", ".join(facts.modalities)
    return f"features ({names}) are set beside the collaborative vectors, whitened, where they help items with few interactions"


def _student(facts: CatalogFacts, fits: bool) -> Iterator[Advice]:
    interactions, is_large = facts.num_interactions["train"], fits and not _is_small(facts) and not has_few_items(facts)
    batch = 4096 if interactions > 1 << 16 else 2048
    table = "two tables of vectors are all that serves, and they can hold what the teacher ranks"
    yield Advice("student.kind", "mf", table)
    yield Advice("student.dim", LARGE_DIM if is_large else 128, table)
    yield Advice("student.warm_start", True, "tables that start at the closest scores of their size have less to learn from lists")
    lists = "the student learns the teacher's ranking alone, from lists: every user alike, as metrics count users"
    of_lists: dict[str, Value] = {"student.examples": "users", "student.bpr_weight": 0.0, "student.l2": 0.0, "distill.score_weight": 1.0}
    for name, value in of_lists.items():
        yield Advice(name, value, lists)
    for name in ("pair", "list", "embedding"):
        yield Advice(f"distill.{name}_weight", 0.0, lists)
    few = has_few_items(facts)
    own = "a user's own item in a list says nothing about the order of the others"
    if is_large:
        own = "items of a history speak for each other, so that a user's own items would drown the others of a list"
    yield Advice("distill.score_positive", False, own)
    yield Advice("distill.temperature", *_temperature(facts))
    half = "half of a list is what the teacher ranks best, half is drawn from all that the user has not seen"
    for name, value in {"distill.num_uniform": 10, "distill.num_top": 10, "distill.top_depth": min(100, facts.num_items // 4)}.items():
        yield Advice(name, value, half)
    epochs = min(MOST_LABEL_EPOCHS, max(2, -(-EXAMPLES // max(1, interactions))))
    fresh = f"{interactions:,} examples an epoch: {epochs} epochs of fresh lists are as many as the student needs"
    yield Advice("labels.epochs", epochs, fresh)
    if fits and keeps_histories(facts):
        why = "a user's scores are computed once a block: the larger the block, the fewer times"
        yield Advice("labels.block_rows", LARGE_BLOCK, why)
    steps = -(-interactions // batch)
    if few:
        epochs = max(10, FEW_STEPS // steps)
        of_length: dict[str, Value] = {"epochs": epochs, "patience": epochs, "evaluate_every": FEW_EVALUATE_EVERY}
        why = f"{steps} steps an epoch; about {FEW_STEPS:,} in all, looked at seldom, since a held-out item or two of a user say little"
    else:
        of_length = {"epochs": max(10, STEPS // steps), "patience": max(3, min(10, PATIENT_STEPS // steps))}
        why = f"{steps} steps an epoch; about {STEPS} in all, {PATIENT_STEPS} without a gain"
    training: dict[str, Value] = {**of_length, "batch_size": batch, "learning_rate": 0.003, "lr_decay": _decay(steps)}
    for name, value in training.items():
        yield Advice(f"student.train.{name}", value, why)


def _temperature(facts: CatalogFacts) -> tuple[float, str]:
    """Returns τ of the lists, in standard deviations of a user's scores, and why."""
    if has_few_items(facts):
        return 8.0, "users with few items have scores with long tails: a high temperature keeps a list from being its first item alone"
    return 2.0, "two standard deviations of a user's scores: lists are learnt as a whole"


def _decay(steps: int) -> float:
    """Returns the learning rate's factor for an epoch of so many steps: .96 for 22 of them, as the recipe lists has it."""
    return round(0.96 ** max(0.5, min(4.0, steps / 22)), 3)
