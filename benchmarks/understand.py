"""What a validation split asks for, before any model: who has the interactions, what popularity, co-occurrence and features say.

    python benchmarks/understand.py --recipe tiktok --path DIR

Validation only: the test split is never opened.
"""

import argparse
import tempfile

import torch
from promptmm.core.features import FeatureMoments, Standardisation
from promptmm.graph_store.dataset import Dataset, open_dataset
from promptmm.graph_store.dataset_writer import write_dataset
from promptmm.graph_store.sources.formats import load_catalog
from promptmm.jobs.settings import load_settings

BUSY_FACTOR = 10  # a busy user has more than so many times the mean of train interactions
CHUNK = 512


class Scores:
    """Places of held-out items under a score, train items masked; ties count for half."""

    def __init__(self, dataset: Dataset) -> None:
        self.train, held_out = dataset.csr("train"), dataset.csr("validation")
        self.users, self.items = held_out.rows, held_out.columns.long()
        self.dense = torch.zeros(dataset.num_users, dataset.num_items)
        self.dense[self.train.rows, self.train.columns.long()] = 1

    def places(self, score) -> torch.Tensor:
        """float32 [pairs]; score: int64 [n] users -> float32 [n, num_items]."""
        found = []
        for first in range(0, self.users.numel(), CHUNK):
            users, items = self.users[first : first + CHUNK], self.items[first : first + CHUNK]
            scores = score(users).masked_fill(self.dense[users] > 0, -torch.inf)
            own = scores.gather(1, items[:, None])
            found.append((scores > own).sum(1) + 0.5 * ((scores == own).sum(1) - 1))
        return torch.cat(found)


def recall(places: torch.Tensor, k: int = 20) -> float:
    """Share of held-out items within k places."""
    return float((places < k).float().mean())


def features(dataset: Dataset, modality: str, whiten: bool) -> torch.Tensor:
    """Rows of unit length."""
    rows, present = dataset.features(modality)
    rows, present = torch.from_numpy(rows), torch.from_numpy(present)
    moments = FeatureMoments.of(rows, present)
    standard = Standardisation.from_moments(moments)
    return torch.nn.functional.normalize((standard.whitened(moments) if whiten else standard).apply(rows, present), dim=1)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--recipe", default="tiktok")
    parser.add_argument("--path", required=True)
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    settings = load_settings(options.recipe, [f"source.path={options.path}"])
    with tempfile.TemporaryDirectory() as folder:
        write_dataset(f"{folder}/dataset", load_catalog(settings.source), {})
        report(open_dataset(f"{folder}/dataset").without("test"))


def report(dataset: Dataset) -> None:
    """Prints everything."""
    scores = Scores(dataset)
    dense, degrees = scores.dense, scores.train.degrees
    busy = degrees > BUSY_FACTOR * degrees.double().mean()
    popularity, of_others = dense.sum(0), dense[~busy].sum(0)
    share = float(degrees[busy].sum() / degrees.sum())
    print(f"busy users (over {BUSY_FACTOR} times the mean): {int(busy.sum())} have {share:.0%} of the train interactions")
    print(f"users with a validation item: {int(degrees[scores.users].median())} train items in the median")
    print(f"validation items without a train interaction: {float((popularity[scores.items] == 0).float().mean()):.1%}")
    for name, counts in (("all", popularity), ("busy users", dense[busy].sum(0)), ("the others", of_others)):
        print(f"popularity among {name}: recall@20 {recall(scores.places(lambda users: counts.expand(len(users), -1))):.4f}")  # noqa: B023
    for name, rows in (("all users", dense), ("users but the busy", dense[~busy])):
        together = rows.T @ rows
        together.fill_diagonal_(0)
        places = scores.places(lambda users: dense[users] @ together)  # noqa: B023
        print(f"co-occurrence counts over {name}: recall@20 {recall(places):.4f}")
    found = scores.places(lambda users: dense[users] @ together)
    print("the last, by the item's interactions with users but the busy:")
    held = of_others[scores.items]
    for low, high in ((0, 0), (1, 5), (6, 15), (16, 40), (41, 100), (101, torch.inf)):
        group = (held >= low) & (held <= high)
        print(f"  {low} to {high}: {float(group.float().mean()):.1%} of the pairs, recall@20 {recall(found[group]):.4f}")
    for modality in dataset.modalities:
        for whiten in (False, True):
            x = features(dataset, modality, whiten)
            profile = dense @ x
            places = scores.places(lambda users: profile[users] @ x.T)  # noqa: B023
            cold = popularity[scores.items] == 0
            beyond = places / (dataset.num_items - degrees[scores.users] - 1)
            print(
                f"{modality}{', whitened' if whiten else ''}, cosine to the user's items: recall@20 {recall(places):.4f}, "
                f"AUC {1 - float(beyond.mean()):.3f}, of items without interactions {1 - float(beyond[cold].mean()):.3f}"
            )


if __name__ == "__main__":
    main()
