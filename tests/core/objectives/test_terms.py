"""The teacher's labels, and what a student learns from them (docs/method.md 3)."""

import dataclasses

import pytest
import torch
from promptmm.core.config import DistillationConfig, StudentConfig, TeacherConfig
from promptmm.core.graph import BipartiteGraph
from promptmm.core.kinds import STUDENTS
from promptmm.core.losses import bpr_loss, embedding_loss, list_loss, pair_loss, score_loss
from promptmm.core.objectives import Decoders, Labels, LossInputs, StudentSide, distillation_terms, label, student_terms
from promptmm.core.rows import IdTables
from promptmm.core.scoring import candidate_scores
from promptmm.core.students import build_student
from promptmm.core.teacher.model import teacher_vectors
from promptmm.core.teacher.reduction import PromptConstants, PromptModule
from promptmm.core.vectors import TeacherVectors

NUM_USERS, NUM_ITEMS = 6, 5
USERS = torch.tensor([0, 0, 0, 1, 2, 2, 3, 5, 5])
ITEMS = torch.tensor([0, 1, 4, 1, 0, 2, 1, 4, 2])
LISTS = torch.tensor([0, 2, 5, 0]), torch.tensor([[1, 3, 2, 2], [2, 1, 3, 4], [4, 0, 1, 3], [0, 2, 3, 3]])


def draw(seed, *shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.fixture
def graph():
    return BipartiteGraph.from_pairs(USERS, ITEMS, NUM_USERS, NUM_ITEMS)


@pytest.fixture
def teacher():
    """A teacher's vectors of two modalities, which take gradients."""
    leaves = [draw(10 + n, size, 3).requires_grad_() for n, size in enumerate([NUM_USERS, NUM_ITEMS] * 3)]
    modal_user, modal_item = {"a": leaves[2], "b": leaves[4]}, {"a": leaves[3], "b": leaves[5]}
    return TeacherVectors(leaves[0], leaves[1], modal_user, modal_item, None, None, {})


def test_labels_are_relative_to_the_positive(teacher):
    users, candidates = LISTS
    teacher = teacher.detach()
    labels = label(teacher, users, candidates)
    pairs = [(teacher.user, teacher.item, labels.scores)]
    pairs += [(teacher.modal_user[m], teacher.modal_item[m], labels.modal_scores[n]) for n, m in enumerate("ab")]
    for of_users, of_items, scores in pairs:
        for row, user in enumerate(users.tolist()):
            for place, item in enumerate(candidates[row].tolist()):
                relative = float(of_users[user] @ of_items[item] - of_users[user] @ of_items[candidates[row, 0]])
                assert scores[row, place].item() == pytest.approx(relative, abs=1e-5)
    assert not labels.scores[:, 0].any()
    assert not labels.modal_scores[:, :, 0].any()


def test_slices_and_dtypes_of_labels(teacher):
    labels = label(teacher.detach(), *LISTS)
    half = Labels(labels.users.int(), labels.candidates.int(), labels.scores.half(), labels.modal_scores.half())
    part = half.slice(slice(1, 3)).to("cpu")
    assert len(part) == 2
    assert [x.dtype for x in (part.users, part.candidates, part.scores, part.modal_scores)] == [
        torch.int64,
        torch.int64,
        torch.float32,
        torch.float32,
    ]
    assert torch.equal(part.candidates, labels.candidates[1:3])
    torch.testing.assert_close(part.modal_scores, labels.modal_scores[:, 1:3], rtol=1e-2, atol=1e-2)
    alone = Labels(*LISTS).slice(slice(0, 1)).to("cpu")
    assert alone.scores is None
    assert alone.modal_scores is None


def test_decoders():
    identity = Decoders(["a", "b"], 3, 3, learnt=False)
    x = draw(0, 5, 3)
    assert all(torch.equal(y, x) for y in identity(x))
    assert list(identity.parameters()) == []
    for student_dim, learnt in ((3, True), (2, False)):
        decoders = Decoders(["a", "b"], student_dim, 3, learnt)
        x = draw(0, 5, student_dim)
        out = decoders(x)
        assert [y.shape for y in out] == [(5, 3), (5, 3)]
        for modality, y in zip("ab", out):
            torch.testing.assert_close(y, x @ decoders.maps[f"of_{modality}"].weight.T)
        assert not torch.equal(*out)


@pytest.mark.parametrize("names", [["visual", "clip-L14"], ["type", "values"]])
def test_decoders_of_any_names(names):
    assert len(Decoders(names, 2, 3, learnt=False)(draw(0, 5, 2))) == 2


CONFIG = DistillationConfig(
    pair_weight=0.7,
    list_weight=0.3,
    embedding_weight=0.9,
    temperature=1.5,
    reweight_temperature=0.4,
    confident_weight=1.2,
    uncertain_weight=0.6,
    embedding_power=2.0,
)


def terms_of(users, items, labels, teacher, config=CONFIG, num_examples=4.0, decoders=None):
    unique = torch.unique(LISTS[1][:, 0])
    decoders = decoders or Decoders(["a", "b"], items.shape[1], 3, learnt=False)
    scores = candidate_scores(users, items, labels.users, labels.candidates)
    own = StudentSide(scores, items, unique, decoders, num_examples, unique.numel())
    return distillation_terms(LossInputs.of(own, labels, lambda: [x[unique] for x in teacher.modal_item.values()], config))


def test_terms(teacher):
    users, items, unique = draw(30, NUM_USERS, 3), draw(31, NUM_ITEMS, 3), [0, 1, 2, 4]
    scores = torch.stack([users[u] @ items[c].T for u, c in zip(*LISTS)])
    torch.testing.assert_close(candidate_scores(users, items, *LISTS), scores)
    labels = label(teacher.detach(), *LISTS)
    targets = [x[unique] for x in teacher.detach().modal_item.values()]
    expected = {
        "pair": 0.7 * pair_loss(scores, labels.scores, 1.5, 4),
        "list": 0.3 * list_loss(scores, labels.modal_scores, 1.5, 0.4, 1.2, 0.6, 4),
        "embedding": 0.9 * embedding_loss([items[unique]] * 2, targets, 2.0),
    }
    terms = terms_of(users, items, labels, teacher.detach())
    assert {k: float(v) for k, v in terms.items()} == pytest.approx({k: float(v) for k, v in expected.items()}, rel=1e-5)

    shards = [terms_of(users, items, labels.slice(part), teacher.detach()) for part in (slice(0, 1), slice(1, 4))]
    for name in ("pair", "list"):
        assert float(shards[0][name] + shards[1][name]) == pytest.approx(float(terms[name]), rel=1e-5)


def test_the_list_of_the_final_score_with_and_without_the_positive(teacher):
    users, items = draw(30, NUM_USERS, 3), draw(31, NUM_ITEMS, 3)
    labels, scores = label(teacher.detach(), *LISTS), candidate_scores(users, items, *LISTS)
    config = DistillationConfig(pair_weight=0, list_weight=0, embedding_weight=0, score_weight=0.4, temperature=1.5)
    for with_positive, first in ((True, 0), (False, 1)):
        terms = terms_of(users, items, labels, teacher.detach(), dataclasses.replace(config, score_positive=with_positive))
        expected = 0.4 * score_loss(scores[:, first:], labels.scores[:, first:], 1.5, 4)
        assert {name: float(term) for name, term in terms.items()} == pytest.approx({"score": float(expected)}, rel=1e-6)


@pytest.mark.parametrize("name", ["pair", "list", "embedding"])
def test_terms_without_weight_are_left_out(teacher, name):
    config = dataclasses.replace(CONFIG, **{f"{name}_weight": 0})
    labels = label(teacher.detach(), *LISTS)
    terms = terms_of(draw(30, NUM_USERS, 3), draw(31, NUM_ITEMS, 3), labels, teacher.detach(), config)
    assert terms.keys() == {"pair", "list", "embedding"} - {name}


@pytest.mark.parametrize("kind", STUDENTS.names)
def test_gradients_reach_the_student_and_the_teacher(graph, teacher, kind):
    student, decoders = build_student(StudentConfig(kind=kind, dim=3, layers=2), 0, (4, 4)), Decoders(["a", "b"], 3, 3, learnt=True)
    width = 3 if student.learns_rows else 4
    rows = [draw(seed, size, width).requires_grad_(student.learns_rows) for seed, size in ((0, NUM_USERS), (1, NUM_ITEMS))]
    terms = terms_of(*student.vectors(graph, *rows), label(teacher, *LISTS), teacher, decoders=decoders)
    parameters = [*student.parameters(), *(rows if student.learns_rows else ()), *decoders.parameters()]
    leaves = {
        "pair": [teacher.user, teacher.item],
        "list": [*teacher.modal_user.values(), *teacher.modal_item.values()],
        "embedding": [*teacher.modal_item.values()],
    }
    for name, of_teacher in leaves.items():
        grads = torch.autograd.grad(terms[name], of_teacher, retain_graph=True)
        assert all(grad.abs().sum() > 0 for grad in grads), name
    for parameter, grad in zip(parameters, torch.autograd.grad(sum(terms.values()), parameters)):
        assert torch.isfinite(grad).all()
        assert grad.abs().sum() > 0, parameter.shape


def test_labels_without_gradient_leave_the_teacher_alone(teacher):
    items = draw(31, NUM_ITEMS, 3).requires_grad_()
    sum(terms_of(draw(30, NUM_USERS, 3), items, label(teacher.detach(), *LISTS), teacher.detach()).values()).backward()
    assert items.grad is not None
    assert teacher.user.grad is None


def test_the_prompt_learns_from_the_pair_loss(graph):
    """Prompt-tuning: only the prompt module trains, through the teacher's propagation and the labels."""
    tokens, prompt = draw(40, NUM_ITEMS, 3), PromptModule(3)
    constants = PromptConstants(tokens, graph.to_users(tokens), {}, {})
    ids = IdTables.seeded(NUM_USERS, NUM_ITEMS, 3, 0.1, seed=0).requires_grad_(False)
    reduced = {"a": draw(41, NUM_ITEMS, 3), "b": draw(42, NUM_ITEMS, 3)}
    vectors = teacher_vectors(graph, ids.user, ids.item, prompt(constants), reduced, TeacherConfig(dim=3))
    users, items = draw(43, NUM_USERS, 3), draw(44, NUM_ITEMS, 3)
    sum(terms_of(users, items, label(vectors, *LISTS), vectors).values()).backward()
    for parameter in prompt.parameters():
        assert parameter.grad.abs().sum() > 0
    assert ids.user.grad is None


def test_the_students_own_terms():
    users, items = draw(50, NUM_USERS, 3), draw(51, NUM_ITEMS, 3)
    rows = [users[LISTS[0]], items[LISTS[1][:, 0]], items[LISTS[1][:, 1]]]
    terms = student_terms(candidate_scores(users, items, *LISTS), rows, l2=0.1, num_examples=4)
    positive, negative = ((users[LISTS[0]] * items[LISTS[1][:, place]]).sum(1) for place in (0, 1))
    torch.testing.assert_close(terms["bpr"], bpr_loss(positive, negative, 4))
    torch.testing.assert_close(terms["l2"], 0.1 * 0.5 * sum(r.square().sum() for r in rows) / 4)


def test_candidate_scores_pass_gradcheck():
    users, items = (torch.randn(n, 3, dtype=torch.float64, requires_grad=True) for n in (4, 5))
    rows, candidates = torch.tensor([0, 3, 3]), torch.tensor([[4, 1], [1, 1], [0, 4]])  # repeated users and items
    assert torch.autograd.gradcheck(lambda u, i: candidate_scores(u, i, rows, candidates), (users, items))


@pytest.mark.parametrize(("batch", "width", "dim"), [(0, 5, 8), (3, 1, 4), (700, 33, 64), (3000, 101, 32)])
def test_candidate_scores_without_gradients_are_the_same_to_the_last_digit(batch: int, width: int, dim: int):
    generator = torch.Generator().manual_seed(0)
    users, items = torch.randn(50, dim, generator=generator), torch.randn(40, dim, generator=generator)
    rows = torch.randint(50, (batch,), generator=generator)
    candidates = torch.randint(40, (batch, width), generator=generator)
    assert torch.equal(candidate_scores(users, items, rows, candidates), candidate_scores(users.requires_grad_(), items, rows, candidates))
