"""Every loss against a loop-by-loop numpy transcription of its formula (docs/method.md 1.6 and 3), and by finite differences."""

import math

import numpy as np
import pytest
import torch
from promptmm.core.losses import bpr_loss, embedding_loss, l2_loss, list_loss, pair_loss, score_loss, softmax_loss
from torch.autograd import gradcheck

BATCH = 4
SHAPES = [(1, 1), (1, 7), (2, 1), (2, 3), (3, 2), (3, 7)]  # modalities, K


def sigmoid(x):
    return 1 / (1 + math.exp(-x))


def softmax(x):
    x = np.asarray(x)
    e = np.exp(x - x.max())
    return e / e.sum()


def kl(p, q):
    return sum(a * (math.log(a) - math.log(b)) for a, b in zip(p, q))


def pair_reference(student, teacher, tau):
    terms = []
    for u in range(len(student)):
        for j in range(1, student.shape[1]):
            s = (student[u, 0] - student[u, j]) / tau
            t = (teacher[u, 0] - teacher[u, j]) / tau
            terms.append(kl([sigmoid(t), sigmoid(-t)], [sigmoid(s), sigmoid(-s)]))
    return tau**2 * np.mean(terms)


def weights_reference(modal, tau, tau_omega):
    """ω_um = |M| softmax_m(b^{T,m}_+ / τ_ω), [modalities, batch]."""
    omega = np.empty(modal.shape[:2])
    for u in range(modal.shape[1]):
        positive = [softmax(scores / tau)[0] for scores in modal[:, u]]
        omega[:, u] = len(modal) * softmax(np.array(positive) / tau_omega)
    return omega


def list_reference(student, modal, tau, alpha, beta, omega, disentangle=True):
    total = 0.0
    for m in range(len(modal)):
        of_users = []
        for u in range(len(student)):
            teacher_list, student_list = softmax(modal[m, u] / tau), softmax(student[u] / tau)
            t, s = teacher_list[0], student_list[0]
            binary = kl([t, 1 - t], [s, 1 - s])
            negatives = kl(teacher_list[1:] / (1 - t), student_list[1:] / (1 - s))
            factor = beta if disentangle else 1 - t
            of_users.append(omega[m, u] * (alpha * binary + factor * negatives))
        total += np.mean(of_users)
    return tau**2 * total


def embedding_reference(decoded, targets, gamma):
    errors = []
    for modality, of_teacher in zip(decoded, targets):
        for s, t in zip(modality, of_teacher):
            errors.append((1 - s @ t / (np.linalg.norm(s) * np.linalg.norm(t))) ** gamma)
    return np.mean(errors)


def draw(seed, *shape, scale=2.0):
    return scale * torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def close(actual, expected, rtol=1e-10):
    np.testing.assert_allclose(float(actual), float(expected), rtol=rtol, atol=1e-14)


def test_bpr_and_l2():
    positive, negative = draw(0, 6), draw(1, 6)
    expected = np.mean([-math.log(sigmoid(p - n)) for p, n in zip(positive.tolist(), negative.tolist())])
    close(bpr_loss(positive, negative, 6), expected)
    rows = [draw(2, 6, 3), draw(3, 6, 3), draw(4, 6, 3)]
    close(l2_loss(rows, 6), 0.5 * sum(float(x) ** 2 for table in rows for row in table for x in row) / 6)


@pytest.mark.parametrize("temperature", [0.3, 1.0, 2.5])
@pytest.mark.parametrize("num_negatives", [1, 2, 7])
def test_pair_loss(num_negatives, temperature):
    student, teacher = draw(0, BATCH, 1 + num_negatives), draw(1, BATCH, 1 + num_negatives)
    expected = pair_reference(student.numpy(), teacher.numpy(), temperature)
    close(pair_loss(student, teacher, temperature, BATCH), expected)
    relative = teacher - teacher[:, :1]  # labels are stored relative to the positive's score
    close(pair_loss(student, relative, temperature, BATCH), expected)


@pytest.mark.parametrize("reweight", [True, False])
@pytest.mark.parametrize("disentangle", [True, False])
@pytest.mark.parametrize(("num_modalities", "num_negatives"), SHAPES)
def test_list_loss(num_modalities, num_negatives, disentangle, reweight):
    tau, tau_omega, alpha, beta = 0.7, 0.4, 1.3, 0.6
    student, modal = draw(2, BATCH, 1 + num_negatives), draw(3, num_modalities, BATCH, 1 + num_negatives)
    omega = weights_reference(modal.numpy(), tau, tau_omega) if reweight else np.ones((num_modalities, BATCH))
    expected = list_reference(student.numpy(), modal.numpy(), tau, alpha, beta, omega, disentangle)
    close(list_loss(student, modal, tau, tau_omega, alpha, beta, BATCH, reweight, disentangle), expected)
    relative = modal - modal[:, :, :1]
    close(list_loss(student, relative, tau, tau_omega, alpha, beta, BATCH, reweight, disentangle), expected)


@pytest.mark.parametrize("temperature", [0.3, 1.0])
@pytest.mark.parametrize("num_negatives", [1, 7])
def test_score_loss(num_negatives, temperature):
    student, teacher = draw(0, BATCH, 1 + num_negatives), draw(1, BATCH, 1 + num_negatives)
    lists = [kl(softmax(t / temperature), softmax(s / temperature)) for s, t in zip(student.numpy(), teacher.numpy())]
    close(score_loss(student, teacher, temperature, BATCH), temperature**2 * np.mean(lists))
    close(score_loss(student + draw(2, BATCH, 1), teacher - teacher[:, :1], temperature, BATCH), temperature**2 * np.mean(lists))


@pytest.mark.parametrize(("num_modalities", "num_negatives"), SHAPES)
def test_the_coupled_list_loss_is_the_plain_divergence(num_modalities, num_negatives):
    tau = 1.7
    student, modal = draw(4, BATCH, 1 + num_negatives), draw(5, num_modalities, BATCH, 1 + num_negatives)
    pairs = [(m, u) for m in range(num_modalities) for u in range(BATCH)]
    expected = sum(kl(softmax(modal[m, u] / tau), softmax(student[u] / tau)) for m, u in pairs) / BATCH
    actual = list_loss(student, modal, tau, 1.0, 1.0, 123.0, BATCH, reweight=False, disentangle=False)
    close(actual, tau**2 * expected)


@pytest.mark.parametrize("power", [1.0, 1.5, 2.0, 3.0])
@pytest.mark.parametrize("num_modalities", [1, 2, 3])
def test_embedding_loss(num_modalities, power):
    decoded = [draw(m, 5, 3) for m in range(num_modalities)]
    targets = [draw(10 + m, 5, 3) for m in range(num_modalities)]
    expected = embedding_reference([x.numpy() for x in decoded], [x.numpy() for x in targets], power)
    close(embedding_loss(decoded, targets, power), expected)


def test_gradients_of_bpr_and_l2():
    positive, negative = draw(0, 5).requires_grad_(), draw(1, 5).requires_grad_()
    assert gradcheck(lambda p, n: bpr_loss(p, n, 5), (positive, negative))
    assert gradcheck(lambda a, b: l2_loss([a, b], 5), (draw(2, 5, 3).requires_grad_(), draw(3, 4, 3).requires_grad_()))


@pytest.mark.parametrize("num_negatives", [1, 4])
def test_gradients_of_the_pair_loss(num_negatives):
    student, teacher = (draw(seed, 3, 1 + num_negatives).requires_grad_() for seed in (0, 1))
    assert gradcheck(lambda s, t: pair_loss(s, t, 0.8, 3), (student, teacher))
    assert gradcheck(lambda s, t: score_loss(s, t, 0.8, 3), (student, teacher))


@pytest.mark.parametrize("disentangle", [True, False])
@pytest.mark.parametrize(("num_modalities", "num_negatives"), [(1, 1), (2, 3), (3, 2)])
def test_gradients_of_the_list_loss(num_modalities, num_negatives, disentangle):
    student = draw(0, 3, 1 + num_negatives).requires_grad_()
    modal = draw(1, num_modalities, 3, 1 + num_negatives).requires_grad_()

    def loss(s, t):
        return list_loss(s, t, 0.8, 0.5, 1.2, 0.7, 3, reweight=False, disentangle=disentangle)

    assert gradcheck(loss, (student, modal))
    # The weights depend on the teacher alone, so the student's gradient may be checked with them.
    fixed = modal.detach()
    assert gradcheck(lambda s: list_loss(s, fixed, 0.8, 0.5, 1.2, 0.7, 3, True, disentangle), (student,))


def test_reweighting_is_detached():
    """With ω the teacher's gradient is ω times the gradient of every divergence: ω itself passes none."""
    student, modal = draw(0, BATCH, 4), draw(1, 3, BATCH, 4).requires_grad_()
    settings = {"temperature": 0.8, "reweight_temperature": 0.3, "confident_weight": 1.2, "uncertain_weight": 0.7}
    (actual,) = torch.autograd.grad(list_loss(student, modal, num_examples=BATCH, **settings), modal)
    omega = torch.from_numpy(weights_reference(modal.detach().numpy(), 0.8, 0.3))
    assert (omega - 1).abs().max() > 0.1
    (plain,) = torch.autograd.grad(list_loss(student, modal, num_examples=BATCH, reweight=False, **settings), modal)
    torch.testing.assert_close(actual, omega[:, :, None] * plain, rtol=1e-10, atol=1e-13)


@pytest.mark.parametrize("power", [1.0, 1.5, 2.0])
def test_gradients_of_the_embedding_loss(power):
    vectors = [draw(seed, 3, 2).requires_grad_() for seed in range(4)]
    assert gradcheck(lambda a, b, c, d: embedding_loss([a, b], [c, d], power), vectors)


def test_weighted_examples():
    """Weights of 2 and 0 are an example twice and not at all."""
    positive, negative, rows = draw(2, 3), draw(3, 3), draw(4, 3, 2)
    weights, twice = torch.tensor([2.0, 0.0, 1.0]), torch.tensor([0, 0, 2])
    torch.testing.assert_close(bpr_loss(positive, negative, 3, weights), bpr_loss(positive[twice], negative[twice], 3))
    torch.testing.assert_close(l2_loss([rows], 3, weights), l2_loss([rows[twice]], 3))
    student, teacher, modal = draw(5, 3, 4), draw(6, 3, 4), draw(7, 2, 3, 4)
    for loss in (pair_loss, score_loss):
        torch.testing.assert_close(loss(student, teacher, 0.7, 3, weights), loss(student[twice], teacher[twice], 0.7, 3))
    for disentangle in (True, False):
        weighted = list_loss(student, modal, 0.7, 0.5, 1.1, 0.8, 3, disentangle=disentangle, weights=weights)
        torch.testing.assert_close(weighted, list_loss(student[twice], modal[:, twice], 0.7, 0.5, 1.1, 0.8, 3, disentangle=disentangle))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("temperature", [0.1, 1.0])
def test_extreme_scores_stay_finite(dtype, temperature):
    patterns = [[200, -200, -200], [-200, 200, 200], [200, 200, -200], [-200, -200, -200], [200, -200, 0]]
    scores = torch.tensor(patterns, dtype=dtype)
    student = scores.repeat_interleave(5, 0).requires_grad_()  # every pattern of the student with every one of the teacher
    teacher = scores.repeat(5, 1).requires_grad_()
    modal = torch.stack([scores.repeat(5, 1), scores.flip(0).repeat(5, 1)]).requires_grad_()
    losses = [
        bpr_loss(student[:, 0], student[:, 1], 25),
        pair_loss(student, teacher, temperature, 25),
        list_loss(student, modal, temperature, 0.5, 1.0, 1.0, 25),
        list_loss(student, modal, temperature, 0.5, 1.0, 1.0, 25, disentangle=False),
    ]
    for loss in losses:
        assert torch.isfinite(loss)
        assert loss >= 0
    for grad in torch.autograd.grad(sum(losses), (student, teacher, modal)):
        assert torch.isfinite(grad).all()


def test_a_confident_wrong_student_keeps_its_gradient():
    student = torch.tensor([[-200.0, 200.0]], requires_grad=True)
    teacher = torch.tensor([[200.0, -200.0]])
    for loss in (
        bpr_loss(student[:, 0], student[:, 1], 1),
        pair_loss(student, teacher, 1.0, 1),
        list_loss(student, teacher[None], 1.0, 1.0, 1.0, 1.0, 1),
    ):
        (grad,) = torch.autograd.grad(loss, student)
        torch.testing.assert_close(grad, torch.tensor([[-1.0, 1.0]]))


@pytest.mark.parametrize("disentangle", [True, False])
def test_a_student_that_agrees_has_no_loss(disentangle):
    scores = draw(0, BATCH, 5).requires_grad_()
    teacher = scores.detach() + draw(1, BATCH, 1)  # only differences to the positive count
    pair = pair_loss(scores, teacher, 0.6, BATCH)
    listwise = list_loss(scores, torch.stack([teacher, teacher]), 0.6, 0.5, 1.0, 2.0, BATCH, True, disentangle)
    for loss in (pair, listwise, score_loss(scores, teacher, 0.6, BATCH)):
        assert abs(loss.item()) < 1e-13
        assert torch.autograd.grad(loss, scores, retain_graph=True)[0].abs().max() < 1e-13
    vectors = draw(2, 4, 3)
    assert abs(float(embedding_loss([vectors, vectors], [2 * vectors, 3 * vectors], 1.5))) < 1e-13


@pytest.mark.parametrize("power", [1.0, 1.5])
def test_the_embedding_loss_of_parallel_vectors_has_a_finite_gradient(power):
    vectors = draw(0, 50, 7).float().requires_grad_()
    (grad,) = torch.autograd.grad(embedding_loss([vectors], [vectors.detach()], power), vectors)
    assert torch.isfinite(grad).all()


def test_shards_add_up_to_the_batch():
    size = 7
    student, teacher, modal = draw(0, size, 4), draw(1, size, 4), draw(2, 2, size, 4)
    rows = draw(3, size, 3)

    def losses(shard):
        return torch.stack(
            [
                bpr_loss(student[shard, 0], student[shard, 1], size),
                l2_loss([rows[shard]], size),
                pair_loss(student[shard], teacher[shard], 0.9, size),
                score_loss(student[shard], teacher[shard], 0.9, size),
                list_loss(student[shard], modal[:, shard], 0.9, 0.5, 1.1, 0.8, size),
                list_loss(student[shard], modal[:, shard], 0.9, 0.5, 1.1, 0.8, size, disentangle=False),
            ]
        )

    shards = [slice(0, 3), slice(3, 3), slice(3, 7)]
    torch.testing.assert_close(sum(losses(s) for s in shards), losses(slice(None)), rtol=1e-12, atol=0)


@pytest.mark.parametrize("weighted", [False, True])
def test_the_softmax_loss(weighted):
    """The positive counts once, whether the compared items hold it or not, also of users with several examples; shards add up."""
    generator = torch.Generator().manual_seed(3)
    users, positives, compared = (torch.randn(n, 5, dtype=torch.float64, generator=generator) for n in (2, BATCH, 6))
    places = torch.arange(BATCH) % 2
    compared[2] = positives[1]
    columns = torch.full((BATCH,), -1)
    columns[1] = 2
    weights = torch.rand(BATCH, dtype=torch.float64, generator=generator) if weighted else None
    expected = 0.0
    for u in range(BATCH):
        vector = users[places[u]]
        others = [float(vector @ compared[i]) for i in range(6) if (u, i) != (1, 2)]
        term = -math.log(softmax([float(vector @ positives[u]), *others])[0])
        expected += term * (1 if weights is None else float(weights[u])) / BATCH
    parts = [slice(0, 1), slice(1, BATCH)]

    def loss(users: torch.Tensor, positives: torch.Tensor, compared: torch.Tensor, part: slice = slice(None)) -> torch.Tensor:
        further = (users[places[part]] * positives[part]).sum(1)[columns[part] < 0]
        of_part = None if weights is None else weights[part]
        return softmax_loss(users @ compared.T, places[part], columns[part], further, BATCH, of_part)

    assert float(loss(users, positives, compared)) == pytest.approx(expected, rel=1e-12)
    shards = [loss(users, positives, compared, part) for part in parts]
    assert float(sum(shards)) == pytest.approx(expected, rel=1e-12)
    assert gradcheck(loss, [x.requires_grad_() for x in (users, positives, compared)])
