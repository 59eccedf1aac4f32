"""Items that nobody has touched: how the student's map of features ranks them, beside content cosine, VBPR and chance.

    python benchmarks/cold_items.py --recipe tiktok --folder RUNS --vbpr teacher.feature_decay=0.1 -- source.path=DIR

For each seed a tenth of the items with features is held out whole (`source.cold_items`; the seed draws the items and trains), and a run of
the recipe is trained in this process. VBPR is trained on the same interactions with the cold items absent from its catalog: as negatives
its maps would learn to reject them. The map's settings are chosen on train items; nothing here is chosen by what it prints. Runs go on
where they stopped.
"""

import argparse
import statistics
from dataclasses import replace

import inprocess
import torch
from promptmm.core.artifact import has_artifact
from promptmm.core.cold_ranking import ColdSplit, vector_metrics
from promptmm.core.features import Standardisation
from promptmm.core.ranking import evaluate
from promptmm.core.storage import read_json
from promptmm.core.top_k import top_k
from promptmm.distributed.artifacts.teacher import read_weights
from promptmm.graph_store.catalog import SPLITS, Catalog, ids_of
from promptmm.graph_store.dataset import Dataset, masks, open_dataset
from promptmm.graph_store.dataset_writer import write_dataset
from promptmm.jobs.runs.models import TrainedModel, trained_student, trained_teacher
from promptmm.jobs.runs.new_items import features_of, fit_new_items
from promptmm.jobs.settings import Settings, load_settings
from promptmm.jobs.verbs import run_verb
from torch import Tensor

HERE = ("cluster.executor=local", "cluster.threads=1")
K = 20
STUDENT_VERBS = ("prepare", "train-teacher", "label", "distill", "evaluate")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--recipe", required=True)
    parser.add_argument("--folder", required=True, help="of the runs")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--share", type=float, default=0.1)
    parser.add_argument("--vbpr", nargs="*", default=[], help="settings of VBPR")
    parser.add_argument("settings", nargs="+", help="settings of the source")
    options = parser.parse_args()
    rows: dict[str, list[float]] = {}
    for seed in options.seeds:
        drawn = [*options.settings, *HERE, f"source.cold_items={options.share}", f"source.seed={seed}", f"run.seed={seed}"]
        for name, value in measure(options, drawn, seed).items():
            rows.setdefault(name, []).append(value)
    print(f"\n| {', '.join(map(str, options.seeds))} | mean | deviation |\n|---|---:|---:|")
    for name, values in rows.items():
        spread = statistics.stdev(values) if len(values) > 1 else 0.0
        print(f"| {name} | {statistics.mean(values):.4f} | {spread:.4f} |")


def measure(options: argparse.Namespace, drawn: list[str], seed: int) -> dict[str, float]:
    """Trains both runs of a seed and returns Recall@20 of every row."""
    settings = load_settings(options.recipe, [*drawn, f"run.dir={options.folder}/student-{seed}"])
    run(settings, STUDENT_VERBS)
    rows = {name: metrics[f"recall@{K}"] for name, metrics in read_json(f"{settings.dir}/results.json")["cold"]["rows"].items()}
    dataset = open_dataset(f"{settings.dir}/dataset")
    split = ColdSplit.of(dataset.csr("cold"), dataset.csr("train"))
    vbpr = load_settings(options.recipe, [*drawn, "teacher.kind=vbpr", *options.vbpr, f"run.dir={options.folder}/vbpr-{seed}"])
    warm, model = train_vbpr(vbpr, dataset, split)
    rows["VBPR"] = vector_metrics(split, model.users, vbpr_items(vbpr, dataset, split), [K])[f"recall@{K}"]
    rows["VBPR's validation (items with interactions)"] = recall(warm, model, "validation")
    return {**rows, **beside_others(settings, dataset, split)}


def run(settings: Settings, verbs: tuple[str, ...]) -> None:
    for verb in verbs:
        run_verb(verb, settings)


def train_vbpr(settings: Settings, dataset: Dataset, split: ColdSplit) -> tuple[Dataset, TrainedModel]:
    """Trains VBPR on the dataset without its cold items, unless it is there; returns that dataset and the model."""
    url = f"{settings.dir}/dataset"
    if not has_artifact(f"{settings.dir}/teacher"):
        kept = torch.ones(dataset.num_items, dtype=torch.bool)
        kept[split.items] = False
        place, index = (kept.cumsum(0) - 1).numpy(), kept.nonzero().flatten().numpy()
        pairs = {name: dataset.interactions(name) for name in SPLITS if dataset.has_split(name)}
        interactions = {name: (users, place[items]) for name, (users, items) in pairs.items()}
        features = {m: tuple(column[index] for column in dataset.features(m)) for m in dataset.modalities}
        item_ids = dataset.item_ids()
        write_dataset(url, Catalog(ids_of(dataset.user_ids()), ids_of([item_ids[i] for i in index]), interactions, features), {})
        inprocess.train_teacher(settings, open_dataset(url))
    warm = open_dataset(url)
    return warm, trained_teacher(settings.dir, warm, None)


def vbpr_items(settings: Settings, dataset: Dataset, split: ColdSplit) -> Tensor:
    """VBPR's vectors of the cold items from their features: [0, E_1 x_1, ..., E_M x_M, Σ_m <β'_m, x_m>]."""
    weights, manifest = read_weights(f"{settings.dir}/teacher")
    parts, bias = [torch.zeros(split.items.numel(), settings.teacher.dim)], torch.zeros(split.items.numel(), 1)
    for m, _ in manifest["modalities"]:
        standard = Standardisation(*(weights.get(f"standardisation.{m}.{name}") for name in ("mean", "scale", "whitening")))
        x = standard.apply(*features_of(dataset, m, split.items))
        parts.append(x @ weights[f"model.maps.of_{m}.weight"].T)
        bias += x @ weights[f"model.bias_maps.of_{m}.weight"].T
    return torch.cat([*parts, bias], 1)


def recall(dataset: Dataset, model: TrainedModel, split: str) -> float:
    """Recall@20 of a split over the whole catalog."""
    held_out, exclude = masks(dataset, split)
    return evaluate(model.users, model.items, held_out, exclude, [K])[f"recall@{K}"]


def beside_others(settings: Settings, dataset: Dataset, split: ColdSplit) -> dict[str, float]:
    """What mapped items do beside the others, in lists over the whole catalog with train and validation items masked.

    Returns their share of the catalog and of the first 20 places, the same of the third of the other items with the fewest train
    interactions (at least one), Recall@20 of the cold pairs within the whole catalog, and of the test pairs without the cold items and with
    them.
    """
    student = trained_student(settings.dir, None)
    item_map = fit_new_items(dataset, student, settings.run.seed)
    assert item_map is not None
    items = student.items.clone()
    items[split.items] = item_map.vectors({m: features_of(dataset, m, split.items) for m in item_map.encodings})
    held_out, masked = masks(dataset, "test")
    exclude = masked.select(torch.arange(dataset.num_users))
    is_cold = torch.zeros(dataset.num_items, dtype=torch.bool)
    is_cold[split.items] = True
    users = exclude.degrees.nonzero().flatten()
    degrees = torch.bincount(dataset.csr("train").columns, minlength=dataset.num_items)
    others = degrees.nonzero().flatten()
    few = torch.zeros_like(is_cold)
    few[others[torch.argsort(degrees[others], stable=True)[: others.numel() // 3]]] = True
    ranked = torch.cat([places for _, _, places in top_k(student.users[users], items, K, exclude.select(users))])
    with_them, cold = replace(student, items=items), dataset.csr("cold")
    warm = (~is_cold).nonzero().flatten()
    place_of = torch.full((dataset.num_items,), -1)
    place_of[warm] = torch.arange(warm.numel())
    without = [type(csr)(csr.pointers, place_of[csr.columns], warm.numel()) for csr in (held_out, exclude)]
    return {
        "cold items: share of the catalog": split.items.numel() / dataset.num_items,
        "cold items: share of the first 20 places": float(is_cold[ranked].float().mean()),
        "items of few interactions: share of the catalog": float(few.float().mean()),
        "items of few interactions: share of the first 20 places": float(few[ranked].float().mean()),
        "cold pairs, whole catalog": evaluate(student.users, items, cold, exclude, [K])[f"recall@{K}"],
        "test pairs, without the cold items": evaluate(student.users, items[warm], *without, [K])[f"recall@{K}"],
        "test pairs, beside the cold items": recall(dataset, with_them, "test"),
    }


if __name__ == "__main__":
    main()
