"""Writes MovieLens 100K as a catalog of this project: a dense one, with features that say little (benchmarks/README.md).

Every rating counts as an interaction, whatever its stars. Films with fewer than five ratings are left out. A tenth of every user's
interactions, drawn at random, is the test split, another tenth validation. The textual features are the leading left singular vectors,
scaled by the singular values, of TF-IDF rows over the words of a film's title, its genres, year and decade.

    python benchmarks/movielens.py --path ml-100k --out movielens
    promptmm pipeline source.format=mmrec source.path=movielens 'source.modalities={textual: textual.npy}'
"""

import argparse
import re
from collections import Counter
from pathlib import Path

import numpy as np

LEAST_RATINGS, DIMENSIONS = 5, 128


def interactions(path: Path) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Returns users and items of the interactions, counted from 0, and the rows of the catalog's films in u.item."""
    ratings = np.loadtxt(path / "u.data", dtype=np.int64)[:, :2] - 1
    users = np.unique(ratings[:, 0], return_inverse=True)[1]
    kept = np.bincount(ratings[:, 1])[ratings[:, 1]] >= LEAST_RATINGS
    films, items = np.unique(ratings[kept, 1], return_inverse=True)
    return users[kept], items, films


def splits(users: np.ndarray, seed: int) -> np.ndarray:
    """Returns the split of every interaction: 0 train, 1 validation, 2 test. The seed draws it."""
    generator, labels = np.random.default_rng(seed), np.zeros(len(users), np.int64)
    for user in range(users.max() + 1):
        own = generator.permutation(np.flatnonzero(users == user))
        share = max(1, round(len(own) / 10))
        labels[own[:share]], labels[own[share : 2 * share]] = 2, 1
    return labels


def features(path: Path, films: np.ndarray) -> np.ndarray:
    """Returns a row for every film, [films, DIMENSIONS] float32."""
    documents = []
    for line in (path / "u.item").read_text(encoding="latin-1").splitlines():
        _, title, *_, genres = line.split("|", 5)
        words = re.findall(r"[a-z]{3,}", title.lower()) + [f"genre{n}" for n, flag in enumerate(genres.split("|")) if flag == "1"]
        if year := re.search(r"\((\d{4})\)", title):
            words += [f"year{year[1]}", f"decade{year[1][:3]}"]
        documents.append(words)
    documents = [documents[film] for film in films]
    frequency = Counter(word for words in documents for word in set(words))
    column = {word: n for n, word in enumerate(sorted(word for word, count in frequency.items() if count > 1))}
    rows = np.zeros((len(films), len(column)))
    for row, words in zip(rows, documents, strict=True):
        for word in filter(column.__contains__, words):
            row[column[word]] += np.log(len(films) / frequency[word])
    rows /= np.linalg.norm(rows, axis=1, keepdims=True) + 1e-9
    left, values, right = np.linalg.svd(rows, full_matrices=False)
    signs = np.sign(right[np.arange(len(right)), np.abs(right).argmax(1)])  # the vectors' signs are arbitrary
    return (left * values * signs)[:, :DIMENSIONS].astype(np.float32)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--path", required=True, type=Path, help="the folder of MovieLens 100K, with u.data and u.item")
    parser.add_argument("--out", required=True, type=Path, help="the folder that is made, in MMRec's format")
    parser.add_argument("--draw", type=int, default=7, help="seed of the split; 7 is that of the published tables")
    arguments = parser.parse_args()
    users, items, films = interactions(arguments.path)
    table = np.stack([users, items, np.ones_like(users), splits(users, arguments.draw)], axis=1)[np.lexsort((items, users))]
    arguments.out.mkdir(parents=True, exist_ok=True)
    np.savetxt(arguments.out / "movielens.inter", table, fmt="%d", delimiter="\t", header="userID\titemID\trating\tx_label", comments="")
    np.save(arguments.out / "textual.npy", features(arguments.path, films))
    print(f"{users.max() + 1:,} users, {len(films):,} items, {len(users):,} interactions: {arguments.out}")


if __name__ == "__main__":
    main()
