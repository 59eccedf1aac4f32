"""What each loss term of a teacher pulls at while it trains: gradient norms by part, and the size of vectors by an item's interactions.

    python benchmarks/gradients.py --recipe tiktok --path DIR --epochs 6

In one process; the test split is never opened.
"""

import argparse
import tempfile
from typing import Any

import inprocess
import torch
from promptmm.jobs.settings import load_settings

GROUPS = ((0, 0), (1, 3), (4, 15), (16, 10**9))


def norms(trainer: Any, epoch: int) -> dict[str, dict[str, float]]:
    """Gradient norms of the first batch of an epoch: by loss term, then by part of the teacher."""
    task, module = trainer.task, trainer.task.reduction.module
    batch = next(trainer.batches(epoch))
    terms = task.terms(trainer.view((task.seed, epoch * trainer.num_steps)), batch.to(trainer.worker.device))
    parts = {"user table": [trainer.tables.user], "item table": [trainer.tables.item]}
    for name in ("towers", "prompt"):
        parts[name] = [p for key, p in module.named_parameters() if key.startswith(name) and p.requires_grad]
    found: dict[str, dict[str, float]] = {}
    for name, term in terms.items():
        found[name] = {"loss": float(term.detach())}
        for part, parameters in parts.items():
            gradients = torch.autograd.grad(term, parameters, retain_graph=True, allow_unused=True)
            squares = [g.detach().double().square().sum() for g in gradients if g is not None]
            found[name][part] = float(torch.stack(squares).sum().sqrt()) if squares else 0.0
    return found


@torch.no_grad()
def sizes(trainer: Any) -> str:
    """Mean norms of the collaborative item vectors by train interactions, and of the users'."""
    vectors, degrees = trainer.task.all_vectors(trainer.view(), final=False), trainer.catalog.graph.items.degrees
    items = vectors.item if vectors.path_item is None else vectors.path_item
    users = vectors.user if vectors.path_user is None else vectors.path_user
    groups = [(low, high, (degrees >= low) & (degrees <= high)) for low, high in GROUPS]
    of_items = ", ".join(f"{low}{'+' if high > 10**6 else f'-{high}'}: {float(items[m].norm(dim=1).mean()):.2f}" for low, high, m in groups)
    return f"mean norm of users {float(users.norm(dim=1).mean()):.2f}, of items by train interactions {of_items}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--recipe", default="tiktok")
    parser.add_argument("--path", required=True)
    parser.add_argument("--epochs", type=int, default=6)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--set", nargs="*", default=[], help="further settings, key=value")
    options = parser.parse_args()
    worker = inprocess.start(options.threads)
    with tempfile.TemporaryDirectory() as folder:
        settings = load_settings(options.recipe, [f"source.path={options.path}", f"run.dir={folder}", *options.set])
        trainer = inprocess.teacher_trainer(settings, inprocess.prepare(settings).without("test"), worker)
        for epoch in range(options.epochs + 1):
            if epoch in (0, 1, options.epochs // 2, options.epochs):
                print(f"after {epoch} epochs; {sizes(trainer)}")
                for term, row in norms(trainer, epoch).items():
                    print(f"  {term}: " + ", ".join(f"{part} {value:.2e}" for part, value in row.items()), flush=True)
            if epoch < options.epochs:
                inprocess.train_epoch(trainer, epoch)


if __name__ == "__main__":
    main()
