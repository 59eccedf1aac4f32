"""Every linear kind: its vectors have the scores of the dense formula, up to a positive factor for each user."""

import dataclasses
import importlib.util

import pytest
import torch
from promptmm.core.config import TeacherConfig
from promptmm.core.errors import InputError
from promptmm.core.graph import BipartiteGraph
from promptmm.core.kinds import TEACHERS
from promptmm.core.linear.base import LinearTeacher
from promptmm.core.linear.config import LinearConfig
from promptmm.core.linear.fit import CatalogCounts

from .conftest import DIMS, HERE, KINDS, NUM_ITEMS, NUM_USERS

A, B, C = 0.5, 0.4, 0.25  # exponents of users, of items, and of the output


def power(degrees, exponent):
    return torch.where(degrees > 0, degrees.clamp(min=1) ** exponent, 0.0)


def weighted(dense, a=A, b=B):
    return power(dense.sum(1), -a / 2)[:, None] * dense * power(dense.sum(0), -b)


def scaled(dense):
    """Deviation 1 by user, as the vectors have it."""
    spread = dense.std(1, correction=0, keepdim=True)
    return torch.where(spread > 1e-9, dense / spread, dense)


def fit(kind, inputs, **settings):
    return TEACHERS.get(kind).fit(inputs, LinearConfig(**settings))


def scores_of(found):
    vectors = found.users.double() @ found.items.double().T
    return sum((part.rows(torch.arange(NUM_USERS)).double() for part in found.histories), vectors)


def cosines(dense, a=A, shrink=1.0, k=7):
    gram = dense.T @ (power(dense.sum(1), -a)[:, None] * dense)
    norms = gram.diagonal().sqrt()
    similar = (gram / (norms[:, None] * norms + shrink)).fill_diagonal_(0)
    return torch.zeros_like(similar).scatter_(1, *largest(similar, k))


def largest(matrix, k):
    top = matrix.topk(k, dim=1)
    return top.indices, top.values


def ease(dense, ridge, dropout, a=A):
    """Item by item: least squares from the other items' columns, whose penalty is that of items left out at random."""
    gram = dense.T @ (power(dense.sum(1), -a)[:, None] * dense)
    penalty = ridge * gram.diagonal().mean() + dropout / (1 - dropout) * gram.diagonal()
    weights = torch.zeros_like(gram)
    for j in range(NUM_ITEMS):
        others = torch.arange(NUM_ITEMS) != j
        weights[others, j] = torch.linalg.solve((gram + penalty.diag())[others][:, others], gram[others, j])
    return weights


def walks(dense, alpha, beta, k):
    item_to_user = (dense.T / dense.sum(0).clamp(min=1)[:, None]) ** alpha
    user_to_item = (dense / dense.sum(1).clamp(min=1)[:, None]) ** alpha
    steps = ((item_to_user @ user_to_item) * power(dense.sum(0), -beta)).fill_diagonal_(0)
    return torch.zeros_like(steps).scatter_(1, *largest(steps, k))


def axes(dense, rank):
    return torch.linalg.svd(weighted(dense), full_matrices=False).Vh[:rank].T


def ideal(dense, rank):
    v = axes(dense, rank)
    return power(dense.sum(0), -C)[:, None] * (v @ v.T) * power(dense.sum(0), C)


def item_graph(dense, s=1.0, k=None):
    matrix = (weighted(dense).T @ weighted(dense)) ** s
    if k is not None:
        matrix = torch.zeros_like(matrix).scatter_(1, *largest(matrix, k))
    return matrix / torch.linalg.matrix_norm(matrix, 2)


def polynomial(dense, degree, **settings):
    eye = torch.eye(NUM_ITEMS, dtype=dense.dtype)
    filtered = eye - torch.linalg.matrix_power(eye - item_graph(dense, **settings), degree)
    return power(dense.sum(0), -C)[:, None] * filtered * power(dense.sum(0), C)


def linear_filter(dense, s=1.0, k=NUM_ITEMS):
    """P without its diagonal, between the items' exponents."""
    graph = ((weighted(dense).T @ weighted(dense)) ** s).fill_diagonal_(0)
    graph = torch.zeros_like(graph).scatter_(1, *largest(graph, k))
    return power(dense.sum(0), -C)[:, None] * graph * power(dense.sum(0), C)


GRAPH = {"user_exponent": A, "item_exponent": B, "output_exponent": C}
FORMULAS = {  # settings with a rank of all items, and the matrix W of scores A W
    "item_knn": ({"user_exponent": A, "shrink": 1.0, "neighbours": 7}, lambda dense: cosines(dense).T),
    "rp3beta": ({"alpha": 0.7, "beta": 0.25, "neighbours": 7}, lambda dense: walks(dense, 0.7, 0.25, 7)),
    "ease": ({"user_exponent": A, "ridge": 0.3, "dropout": 0.0}, lambda dense: ease(dense, 0.3, 0.0)),
    "ease with dropout": ({"user_exponent": A, "ridge": 0.3, "dropout": 0.4}, lambda dense: ease(dense, 0.3, 0.4)),
    "polynomial": ({**GRAPH, "degree": 3}, lambda dense: polynomial(dense, 3)),
    "polynomial by entries": (
        {**GRAPH, "degree": 2, "power": 0.7, "neighbours": 9},
        lambda dense: polynomial(dense, 2, s=0.7, k=9),
    ),
    "spectral": (
        {**GRAPH, "filter": "neighbourhood", "filter_weight": 0.5},
        lambda dense: item_graph(dense) + 0.5 * ideal(dense, NUM_ITEMS),
    ),
}


@pytest.mark.parametrize("case", FORMULAS)
def test_scores_of_a_full_rank_are_those_of_the_formula(inputs, dense, case):
    settings, formula = FORMULAS[case]
    found = fit(case.split()[0], inputs, rank=NUM_ITEMS, **settings)
    torch.testing.assert_close(scores_of(found), scaled(dense @ formula(dense)), atol=2e-4, rtol=0)
    assert found.settings == {"rank": NUM_ITEMS, **({"power": 1.0} if case == "polynomial" else {}), **settings}


@pytest.mark.parametrize("case", ["item_knn", "rp3beta", "polynomial of the graph", "polynomial by entries"])
def test_rank_zero_keeps_the_scores_of_the_formula_without_vectors(inputs, dense, case):
    own = {
        "polynomial of the graph": ({**GRAPH, "neighbours": NUM_ITEMS}, linear_filter),
        "polynomial by entries": ({**GRAPH, "power": 0.7, "neighbours": 9}, lambda dense: linear_filter(dense, 0.7, 9)),
    }
    settings, formula = own.get(case) or FORMULAS[case]
    found = fit(case.split()[0], inputs, rank=0, **settings)
    assert (found.users.shape, found.items.shape, len(found.histories)) == ((NUM_USERS, 0), (NUM_ITEMS, 0), 1)
    torch.testing.assert_close(scores_of(found), scaled(dense @ formula(dense)), atol=2e-4, rtol=0)
    again = fit(case.split()[0], inputs, **found.settings)
    assert torch.equal(scores_of(again), scores_of(found))


@pytest.mark.parametrize("k", [5, NUM_ITEMS])
def test_the_spectral_filter_keeps_the_neighbourhood_as_similarities_beside_its_vectors(inputs, dense, k):
    settings = {**GRAPH, "filter": "neighbourhood", "filter_weight": 0.5, "rank": 3, "neighbours": k}
    found = fit("spectral", inputs, **settings)
    assert (found.users.shape, found.items.shape, len(found.histories)) == ((NUM_USERS, 3), (NUM_ITEMS, 3), 1)
    graph = item_graph(dense).fill_diagonal_(0)
    neighbourhood = torch.zeros_like(graph).scatter_(1, *largest(graph, k))
    torch.testing.assert_close(scores_of(found), scaled(dense @ (neighbourhood + 0.5 * ideal(dense, 3))), atol=2e-4, rtol=0)


def test_the_settings_that_are_chosen_with_neighbours_make_the_same_vectors_again(inputs):
    """The search shares singular vectors and lists between its trials, the fit that is kept has its own."""
    settings = {"filter": "neighbourhood", "rank": 3, "neighbours": 9, "user_exponent": A, "item_exponent": B}
    wanted = scores_of(fit("spectral", inputs, **settings, filter_weight=1.0, output_exponent=0.5)).double()

    def score(users, items, histories):
        scores = users.double() @ items.double().T + histories[0].rows(torch.arange(NUM_USERS)).double()
        return -float((scaled(scores) - wanted).square().mean())

    found = TEACHERS.get("spectral").fit(inputs, LinearConfig(**settings), score)
    assert set(found.chosen) == {"filter_weight", "output_exponent"}
    assert (found.settings["filter_weight"], found.settings["output_exponent"]) == (1.0, 0.5)
    assert torch.equal(scores_of(fit("spectral", inputs, **found.settings)), scores_of(found))


def test_neighbours_of_the_spectral_filter_need_its_neighbourhood_and_no_content():
    for settings, why in (
        ({"neighbours": 5}, "neighbours=5 is the size of the neighbourhood of teacher.linear.filter=neighbourhood"),
        ({"neighbours": 5, "filter": "ideal"}, "neighbours=5 is the size of the neighbourhood"),
        ({"neighbours": 5, "filter": "neighbourhood", "content_weight": None}, "neighbours=5 keeps similarities of items"),
    ):
        with pytest.raises(InputError, match=why):
            TEACHERS.get("spectral").check_settings(LinearConfig(**settings))


def test_rank_zero_is_searched_as_other_ranks_are(inputs, dense):
    """The score sees the exact ranking; the result is scaled, has the settings that were chosen, and depends on them alone."""
    wanted = scaled(dense @ walks(dense, 0.5, 0.25, 20))

    def score(users, items, histories):
        assert (users.shape[1], items.shape[1]) == (0, 0)
        return -float((scaled(histories[0].rows(torch.arange(NUM_USERS)).double()) - wanted).square().mean())

    found = TEACHERS.get("rp3beta").fit(inputs, LinearConfig(rank=0), score)
    assert found.settings == {"rank": 0, "alpha": 0.5, "beta": 0.25, "neighbours": 20}
    torch.testing.assert_close(scores_of(found), wanted, atol=2e-4, rtol=0)


@pytest.mark.parametrize(
    ("kind", "settings", "said"),
    [
        ("spectral", {}, "item_knn, rp3beta and polynomial can"),
        ("ease", {}, "item_knn, rp3beta and polynomial can"),
        ("polynomial", {"degree": 2}, "degree=2 has no meaning with teacher.linear.rank=0"),
        ("item_knn", {"content_weight": None}, "rank=0 keeps similarities of items, and a content score is added to vectors alone"),
    ],
)
def test_rank_zero_is_refused_where_it_has_no_meaning(inputs, kind, settings, said):
    with pytest.raises(InputError, match=said):
        fit(kind, inputs, rank=0, **settings)
    config = TeacherConfig(kind="polynomial", linear=LinearConfig(rank=0))
    assert "full engine alone" in str(TEACHERS.get("polynomial").why_full(config))


@pytest.mark.parametrize("case", [case for case in FORMULAS if case != "spectral"])  # whose rank is also that of the filter
def test_scores_of_a_small_rank_are_the_best_approximation(inputs, dense, case):
    """Of H W with histories H of unit length, before the users are scaled."""
    settings, formula = FORMULAS[case]
    exact = (power(dense.sum(1), -0.5)[:, None] * dense) @ formula(dense)
    left, values, right = torch.linalg.svd(exact, full_matrices=False)
    found = scores_of(fit(case.split()[0], inputs, rank=6, **settings))
    torch.testing.assert_close(found, scaled((left[:, :6] * values[:6]) @ right[:6]), atol=5e-3, rtol=0)


@pytest.mark.parametrize("rank", [3, 20])
def test_the_ideal_filter_keeps_the_leading_singular_vectors(inputs, dense, rank):
    found = fit("spectral", inputs, rank=rank, filter="ideal", **GRAPH)
    assert found.users.shape == (NUM_USERS, rank)
    torch.testing.assert_close(scores_of(found), scaled(dense @ ideal(dense, rank)), atol=5e-3, rtol=0)


def test_popularity(inputs, dense):
    found = fit("popularity", inputs, user_exponent=A)
    expected = power(dense.sum(1), -A) @ dense
    torch.testing.assert_close(scores_of(found), (expected / expected.std(correction=0)).expand(NUM_USERS, -1), atol=1e-5, rtol=0)


@pytest.mark.parametrize("preparation", ["standardised", "whitened"])
def test_content_adds_weighted_cosines(inputs, dense, preparation):
    weights = {"text": 2.0, "sound": 0.5}
    found = fit("content", inputs, preparation=preparation, item_exponent=B, modality_weights=weights)
    total = torch.zeros(NUM_USERS, NUM_ITEMS, dtype=torch.float64)
    for modality, weight in weights.items():
        rows = inputs.features[modality].double()
        if preparation == "whitened":
            present = rows[rows.any(1)]
            values, vectors = torch.linalg.eigh(present.T @ present / len(present))
            rows = rows @ vectors @ torch.diag((values + 0.1 * values.mean()) ** -0.5) @ vectors.T
        rows = torch.nn.functional.normalize(rows, dim=1)
        users = torch.nn.functional.normalize((dense * power(dense.sum(0), -B)) @ rows, dim=1)
        total += weight * users @ rows.T
    torch.testing.assert_close(scores_of(found), scaled(total), atol=1e-4, rtol=0)
    alone = fit("content", inputs, preparation=preparation, modality_weights={"text": 1.0})
    assert alone.items.shape == (NUM_ITEMS, DIMS["text"])
    with pytest.raises(InputError, match="modality_weights names smell, and the catalog's modalities are text, sound"):
        fit("content", inputs, modality_weights={"smell": 1.0})


def test_ials_is_at_the_minimum_of_its_loss(inputs, dense):
    """Alternating exact solutions: users' factors solve their equations given the items'."""
    pytest.importorskip("implicit")
    kind = TEACHERS.get("ials")
    model = kind(inputs, LinearConfig())
    settings = {"rank": 5, "confidence": 4.0, "regularisation": 2.0, "user_exponent": 1.0, "iterations": 200}
    users, items = (rows.double() for rows in model.vectors(settings))
    weights = power(dense.sum(1), -1.0)
    weights = 4 * weights / (dense * weights[:, None]).sum() * dense.sum()
    confidence = torch.where(dense > 0, weights[:, None], 1.0)
    for own, other, of in ((users, items, confidence), (items, users, confidence.T)):
        left = torch.einsum("uc,cd,ce->ude", of, other, other) + 2 * torch.eye(5)
        right = torch.einsum("uc,cd->ud", of * (dense if own is users else dense.T), other)
        torch.testing.assert_close(own, torch.linalg.solve(left, right), atol=2e-3, rtol=0)


@pytest.mark.parametrize("kind", HERE)
def test_the_same_inputs_give_the_same_vectors(inputs, kind):
    ranked = {"rank": 8} if "rank" in TEACHERS.get(kind).reads else {}
    one, two = (fit(kind, inputs, **ranked) for _ in range(2))
    assert torch.equal(one.users, two.users)
    assert torch.equal(one.items, two.items)
    assert one.users.dtype == one.items.dtype == torch.float32
    assert one.trials == 0
    assert one.chosen == ()


@pytest.mark.parametrize("kind", HERE)
def test_users_have_scores_of_unit_deviation(inputs, kind):
    ranked = {"rank": 8} if "rank" in TEACHERS.get(kind).reads else {}
    scores = scores_of(fit(kind, inputs, **ranked))
    torch.testing.assert_close(scores[:-1].std(1, correction=0), torch.ones(NUM_USERS - 1, dtype=torch.float64), atol=1e-3, rtol=0)
    assert scores.isfinite().all()  # the last user has no interactions


@pytest.mark.parametrize("kind", HERE)
def test_vectors_are_within_what_the_plan_counts(inputs, graph, kind):
    found, of = fit(kind, inputs), TEACHERS.get(kind)
    counts = CatalogCounts(NUM_USERS, NUM_ITEMS, graph.users.columns.numel(), DIMS if of.reads_features else {})
    assert found.users.shape[1] == found.items.shape[1] <= of.num_columns(LinearConfig(), counts)
    assert of.fitting_bytes(LinearConfig(), counts) > found.users.nbytes + found.items.nbytes


@pytest.mark.parametrize("kind", [kind for kind in HERE if kind != "content"])
def test_an_added_content_score_is_in_units_of_each_users_deviation(inputs, graph, kind):
    """Together with the kind's own; the plan counts its columns, and with the weight 0 nothing is added."""
    weights = {"text": 2.0, "sound": 0.5}
    ranked = {"rank": 8} if "rank" in TEACHERS.get(kind).reads else {}
    own, content = fit(kind, inputs, **ranked), fit("content", inputs, preparation="whitened", modality_weights=weights)
    config = LinearConfig(content_weight=0.4, preparation="whitened", modality_weights=weights, **ranked)
    found = TEACHERS.get(kind).fit(inputs, config)
    expected = scaled(scores_of(own)) + 0.4 * scaled(scores_of(content))
    torch.testing.assert_close(scores_of(found)[:-1], scaled(expected)[:-1], atol=1e-4, rtol=0)  # the last user has no interactions
    assert found.settings == {**own.settings, "content_weight": 0.4, "preparation": "whitened", "modality_weights": weights}
    counts = CatalogCounts(NUM_USERS, NUM_ITEMS, graph.users.columns.numel(), DIMS)
    assert found.users.shape[1] == own.users.shape[1] + sum(DIMS.values()) <= TEACHERS.get(kind).num_columns_in_all(config, counts)
    more = TEACHERS.get(kind).fitting_bytes_in_all(config, counts) - TEACHERS.get(kind).fitting_bytes(config, counts)
    assert more > found.users.nbytes + found.items.nbytes
    none = fit(kind, dataclasses.replace(inputs, features={}), content_weight=0.0, **ranked)
    assert torch.equal(none.users, own.users)
    assert torch.equal(none.items, own.items)


def test_a_content_score_that_cannot_be_added_is_refused(inputs):
    for weight, said in ((0.3, "0.3"), (None, "null")):
        with pytest.raises(InputError, match=rf"content_weight={said} adds a content score, and the catalog has no modality"):
            fit("ease", dataclasses.replace(inputs, features={}), content_weight=weight)
    for kind in ("ease", "spectral", "polynomial"):  # the last two check more
        with pytest.raises(InputError, match=r"preparation=whitened has no meaning with teacher\.linear\.content_weight=0"):
            fit(kind, inputs, preparation="whitened")


@pytest.mark.parametrize("kind", KINDS)
def test_what_a_kind_declares(kind):
    found = TEACHERS.get(kind)
    fields = {field.name for field in dataclasses.fields(LinearConfig)}
    assert issubclass(found, LinearTeacher)
    assert fields >= {*found.linear_settings()}
    assert found.adds_content == (kind != "content")
    assert found.engines == (("full", "sampled") if kind in ("spectral", "polynomial") else ("full",))
    assert {*found.over_shards} <= {*found.reads}
    assert not found.has_modality_vectors(TeacherConfig(kind=kind))
    assert found.reads_features == (kind == "content")
    config = TeacherConfig(kind=kind)
    assert config.is_baseline
    for field in dataclasses.fields(LinearConfig):  # the help names the kinds that read a setting
        _, said, readers = field.metadata["help"].partition("read by ")
        assert said, field.name
        assert ("every linear kind" in readers or kind in readers) == (field.name in found.linear_settings()), field.name


def test_a_catalog_that_ease_cannot_hold_is_refused(inputs):
    many = 1000  # items: 3 matrices of 8 MB, beside edges to the first ones alone
    users, items = inputs.graph.users.rows, inputs.graph.users.columns
    large = dataclasses.replace(inputs, graph=BipartiteGraph.from_pairs(users, items, NUM_USERS, many))
    assert fit("ease", large, memory_mib=24, rank=4).items.shape == (many, 4)
    with pytest.raises(
        InputError, match=r"Gram matrix of 1,000 items.* need 23 MiB, and teacher\.linear\.memory_mib=22 is room for 980 items; raise"
    ):
        fit("ease", large, memory_mib=22)


def test_a_package_that_is_missing_is_named(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(InputError, match=r"pip install 'promptmm\[ials\]'"):
        TEACHERS.get("ials").check_installed()
