"""Candidates that the student itself ranks high: what they are, what the teacher says of them, and when they are ranked."""

import pytest
import torch
from promptmm.distributed.artifacts.teacher import read_revision

NUM_STUDENT, DEPTH = 3, 7
WORDS = [
    "cluster.engine=full",
    "student.kind=mf",
    "distill.num_top=2",
    f"distill.num_student={NUM_STUDENT}",
    f"distill.student_depth={DEPTH}",
]


@pytest.fixture
def student(students):
    def make(*more):
        _, full = students(*WORDS, *more, engines=("full",))
        full.open(range(4))
        return full

    return make


def best_unseen(trainer):
    """The first items of every user's ranking by the student's vectors, without the user's train items."""
    train, scores = trainer.catalog.graph.users, trainer.tables.user.detach() @ trainer.tables.item.detach().T
    scores[train.rows, train.columns] = -torch.inf
    return scores.argsort(1, descending=True)[:, :DEPTH]


def batches_of(trainer, epoch):
    trainer.start_epoch(epoch)
    return list(trainer.batches(epoch))


def test_lists_end_with_what_the_student_ranks_high(student, taught):
    trainer = student()
    best = [set(row.tolist()) for row in best_unseen(trainer)]
    vectors = read_revision(f"{taught}/teacher", 0).vectors
    for batch in batches_of(trainer, 0):
        labels = batch.labels
        assert labels.candidates.shape[1] == 1 + 4 + 2 + NUM_STUDENT
        for user, items in zip(labels.users.tolist(), labels.candidates[:, -NUM_STUDENT:].tolist()):
            assert set(items) <= best[user]
        scores = (vectors.user[labels.users][:, None] * vectors.item[labels.candidates]).sum(2)
        modal = [(vectors.modal_user[m][labels.users][:, None] * vectors.modal_item[m][labels.candidates]).sum(2) for m in "ab"]
        for found, expected in ((labels.scores, scores), *zip(labels.modal_scores, modal)):
            expected = expected - expected[:, :1]
            torch.testing.assert_close(found[:, -NUM_STUDENT:], expected[:, -NUM_STUDENT:], rtol=1e-5, atol=1e-5)
            torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-2)  # streamed labels are float16
    trainer.close()


def test_all_of_the_ranking_is_drawn_and_nothing_else_changes(student, students):
    trainer = student()
    best = best_unseen(trainer)
    batches = batches_of(trainer, 0)
    users, drawn = (torch.cat([getattr(b, name) for b in batches]) for name in ("users", "items"))
    places = (best[users][:, None] == drawn[:, -NUM_STUDENT:, None]).nonzero()[:, 2]
    counts = torch.bincount(places, minlength=DEPTH)
    expected = counts.sum() / DEPTH
    assert int(counts.sum()) == NUM_STUDENT * users.numel()
    assert float(((counts - expected) ** 2 / expected).sum()) < 28  # 6 degrees of freedom: p < 1e-4
    _, without = students(*WORDS, "distill.num_student=0", engines=("full",))
    without.open(range(1))
    assert torch.equal(torch.cat([b.items for b in batches_of(without, 0)]), drawn[:, :-NUM_STUDENT])
    for each in (trainer, without):
        each.close()


def test_every_epoch_ranks_anew_with_the_vectors_that_it_starts_with(student):
    trainer = student()
    first = best_unseen(trainer)
    trainer.start_epoch(0)
    for batch in trainer.batches(0):  # steps within an epoch do not change the ranking
        own = batch.items[:, -NUM_STUDENT:]
        assert bool((first[batch.users][:, None] == own[:, :, None]).any(2).all())
        trainer.train_step(batch, 0)
    second = best_unseen(trainer)
    assert not torch.equal(first, second)
    batch = batches_of(trainer, 1)[0]
    assert bool((second[batch.users][:, None] == batch.items[:, -NUM_STUDENT:, None]).any(2).all())
    trainer.close()


def test_no_scores_by_modality_where_no_loss_reads_them(student):
    trainer = student("distill.list_weight=0", "distill.embedding_weight=0")
    batch = batches_of(trainer, 0)[0]
    assert batch.labels.modal_scores.shape == (0, *batch.labels.candidates.shape)
    assert set(trainer.train_step(batch, 0)) == {"bpr", "l2", "pair"}
    trainer.close()
