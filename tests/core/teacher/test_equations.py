"""The teacher against dense numpy transcriptions of its equations (docs/method.md 1), and by finite differences."""

import math

import numpy as np
import pytest
import torch
from promptmm.core.config import TeacherConfig
from promptmm.core.errors import InputError
from promptmm.core.features import LazyRows
from promptmm.core.graph import BipartiteGraph
from promptmm.core.objectives import label
from promptmm.core.rows import IdTables, rownorm
from promptmm.core.teacher import Triples
from promptmm.core.teacher.model import teacher_loss, teacher_vectors, with_compared_modalities
from promptmm.core.teacher.reduction import FeatureReduction, PromptConstants, PromptModule, build_reduction
from torch.autograd import gradcheck
from torch.func import functional_call

NUM_USERS, NUM_ITEMS, DIM = 6, 5, 3
# User 4 and item 3 have no interactions.
USERS = torch.tensor([0, 0, 0, 1, 2, 2, 3, 5, 5])
ITEMS = torch.tensor([0, 1, 4, 1, 0, 2, 1, 4, 2])
BATCH = torch.tensor([0, 2, 5, 0]), torch.tensor([1, 2, 4, 0]), torch.tensor([3, 4, 0, 2])
MODALITIES = [{"audio": 4}, {"image": 4, "text": 7, "sound-2": 2}]


def draw(seed, *shape):
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def make_graph():
    return BipartiteGraph.from_pairs(USERS, ITEMS, NUM_USERS, NUM_ITEMS)


def dense_normalised():
    adjacency = np.zeros((NUM_USERS, NUM_ITEMS))
    adjacency[USERS, ITEMS] = 1
    scale = np.sqrt(np.outer(adjacency.sum(1), adjacency.sum(0)))
    return np.divide(adjacency, scale, out=np.zeros_like(adjacency), where=adjacency > 0)


def make_constants(features, tokens):
    return PromptConstants(
        tokens,
        make_graph().to_users(tokens),
        {m: tokens.T @ x for m, x in features.items()},
        {m: x.sum(0) for m, x in features.items()},
    )


def perturbed(module, seed=50):
    """The module with every parameter drawn at random, biases too."""
    with torch.no_grad():
        for number, parameter in enumerate(module.parameters()):
            parameter.copy_(0.5 * draw(seed + number, *parameter.shape))
    return module


@pytest.fixture(params=MODALITIES, ids=["one", "three"])
def dims(request):
    return request.param


@pytest.fixture
def features(dims):
    return {m: draw(n, NUM_ITEMS, dim) for n, (m, dim) in enumerate(dims.items())}


@pytest.fixture
def constants(features):
    return make_constants(features, draw(20, NUM_ITEMS, DIM))


def as_float32(constants, features):
    single = PromptConstants(
        constants.item_tokens.float(),
        constants.user_tokens.float(),
        {m: x.float() for m, x in constants.gram.items()},
        {m: x.float() for m, x in constants.column_sums.items()},
    )
    return single, {m: x.float() for m, x in features.items()}


def normalised(x):
    return np.array([row / np.linalg.norm(row) if row.any() else row for row in x])


def arrays(module):
    return {name: p.detach().double().numpy() for name, p in module.named_parameters()}


def prompt_reference(weights, constants):
    item = constants.item_tokens.numpy() @ weights["item_weight"] + weights["item_bias"]
    user = constants.user_tokens.numpy() @ weights["user_weight"] + weights["user_bias"]
    return user, item


def reduction_reference(reduction, constants, features):
    """z_m = R_m(X_m + λ_f rownorm(p_I p_I^T X_m)) by rows and layers."""
    weights, config, out = arrays(reduction), reduction.config, {}
    _, prompt = prompt_reference({n.removeprefix("prompt."): w for n, w in weights.items()}, constants)
    for modality, x in features.items():
        x = x.numpy()
        if config.prompt:
            x = x + config.feature_prompt_weight * normalised(prompt @ (prompt.T @ x))
        for layer in range(len(config.hidden) + 1):
            if layer:
                x = np.where(x > 0, x, 0.2 * x)
            name = f"towers.of_{modality}.{2 * layer}"
            x = x @ weights[f"{name}.weight"].T + weights[f"{name}.bias"]
        out[modality] = x
    return out


def vectors_reference(user_ids, item_ids, prompt_user, prompt_item, reduced, config):
    dense = dense_normalised()
    users, items = user_ids.numpy(), item_ids.numpy()
    if config.prompt:
        users = users + config.id_prompt_weight * normalised(prompt_user.numpy())
        items = items + config.id_prompt_weight * normalised(prompt_item.numpy())
    user_layers, item_layers = [users], [items]
    for _ in range(config.layers):
        next_users, next_items = dense @ item_layers[-1], dense.T @ user_layers[-1]
        user_layers.append(next_users)
        item_layers.append(next_items)
    users, items = np.mean(user_layers, axis=0), np.mean(item_layers, axis=0)
    modal_user, modal_item = {}, {}
    for modality, z in reduced.items():
        of_items = z.numpy()
        of_users = dense @ of_items
        for _ in range(config.modality_layers):
            of_users = dense @ of_items
            of_items = dense.T @ of_users
        modal_user[modality], modal_item[modality] = of_users, of_items
    if config.fusion == "concat":
        users = np.hstack([normalised(users), *(config.fusion_weight * normalised(m) for m in modal_user.values())])
        items = np.hstack([items, *(normalised(m) for m in modal_item.values())])
    else:
        users = users + config.fusion_weight * sum(normalised(m) for m in modal_user.values())
        items = items + config.fusion_weight * sum(normalised(m) for m in modal_item.values())
    return users, items, modal_user, modal_item


def close(actual, expected, tolerance=1e-6):
    np.testing.assert_allclose(actual.detach().double().numpy(), expected, rtol=tolerance, atol=tolerance)


def test_rownorm():
    x = draw(0, 4, 3)
    x[2] = 0
    close(rownorm(x), normalised(x.numpy()), 1e-12)


def test_soft_prompts(constants):
    module = perturbed(PromptModule(DIM).double())
    user, item = prompt_reference(arrays(module), constants)
    out = module(constants)
    close(out["user"], user, 1e-12)
    close(out["item"], item, 1e-12)


def test_the_context_needs_no_pass_over_the_catalog(constants, features):
    """C_m = W_I^T G_m + b_I s_m^T is p_I^T X_m, with the same gradient."""
    module = perturbed(PromptModule(DIM).double())
    parameters = module.item_weight, module.item_bias
    for number, (modality, x) in enumerate(features.items()):
        short = module(constants)[f"context.{modality}"]
        long = (constants.item_tokens @ module.item_weight + module.item_bias).T @ x
        torch.testing.assert_close(short, long, rtol=1e-12, atol=1e-12)
        upstream = draw(30 + number, *short.shape)
        for mine, its in zip(*(torch.autograd.grad((c * upstream).sum(), parameters) for c in (short, long))):
            torch.testing.assert_close(mine, its, rtol=1e-11, atol=1e-12)
            assert mine.abs().max() > 0.1


def test_the_prompt_starts_as_the_hard_tokens(constants):
    out = PromptModule(DIM).double()(constants)
    torch.testing.assert_close(out["item"], constants.item_tokens)
    torch.testing.assert_close(out["user"], constants.user_tokens)


@pytest.mark.parametrize("hidden", [[], [6], [5, 4]])
@pytest.mark.parametrize(("prompt", "weight"), [(True, 0.7), (True, 0.0), (False, 0.7)])
def test_feature_reduction(dims, constants, features, hidden, prompt, weight):
    config = TeacherConfig(dim=DIM, hidden=hidden, prompt=prompt, feature_prompt_weight=weight)
    reduction = perturbed(FeatureReduction(dims, config))
    out = reduction(*single_inputs(constants, features), None)
    expected = reduction_reference(reduction, constants, features)
    for modality in dims:
        assert out[f"reduced.{modality}"].dtype == torch.float32
        close(out[f"reduced.{modality}"], expected[modality], 1e-5)


def single_inputs(constants, features, rows=None):
    rows = torch.arange(NUM_ITEMS) if rows is None else rows
    single, x = as_float32(constants, features)
    return single, rows, {m: values[rows] for m, values in x.items()}


@pytest.mark.parametrize("keys", [None, (3, 17)])
def test_shards_of_the_catalog_reduce_to_the_whole(dims, constants, features, keys):
    config = TeacherConfig(dim=DIM, dropout=0.5, feature_prompt_weight=0.5)
    reduction = perturbed(FeatureReduction(dims, config))
    whole = reduction(*single_inputs(constants, features), keys)
    for rows in torch.arange(NUM_ITEMS).split(2):
        part = reduction(*single_inputs(constants, features, rows), keys)
        for modality in dims:
            name = f"reduced.{modality}"
            torch.testing.assert_close(part[name], whole[name][rows])


def test_dropout_only_in_training(dims, constants, features):
    config = TeacherConfig(dim=DIM, dropout=0.5)
    reduction = perturbed(FeatureReduction(dims, config))
    inputs = single_inputs(constants, features)
    plain = [reduction(*inputs, None) for _ in range(2)]
    first, again, other_step = (reduction(*inputs, keys) for keys in ((0, 1), (0, 1), (0, 2)))
    for name in (f"reduced.{m}" for m in dims):
        assert torch.equal(plain[0][name], plain[1][name])
        assert torch.equal(first[name], again[name])
        dropped = first[name] == 0
        torch.testing.assert_close(first[name][~dropped], 2 * plain[0][name][~dropped])
        assert not torch.equal(dropped, other_step[name] == 0)
        assert not dropped.all()
    masks = {tuple((first[f"reduced.{m}"] == 0).flatten().tolist()) for m in dims}
    assert len(masks) == len(dims)  # modalities do not share their mask


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"layers": 0, "modality_layers": 3},
        {"layers": 3, "fusion_weight": 0.4, "id_prompt_weight": 0.6},
        {"prompt": False},
        {"id_prompt_weight": 0.0, "fusion_weight": 0.0},
        {"fusion": "concat", "fusion_weight": 0.7},
        {"fusion": "concat", "modality_layers": 0, "layers": 1},
        {"modality_layers": 0},
    ],
)
def test_vectors(dims, settings):
    config = TeacherConfig(dim=DIM, **settings)
    user_ids, item_ids = draw(1, NUM_USERS, DIM), draw(2, NUM_ITEMS, DIM)
    prompt = {"user": draw(3, NUM_USERS, DIM), "item": draw(4, NUM_ITEMS, DIM)}
    reduced = {m: draw(5 + n, NUM_ITEMS, DIM) for n, m in enumerate(dims)}
    vectors = teacher_vectors(make_graph(), user_ids, item_ids, prompt, reduced, config)
    users, items, modal_user, modal_item = vectors_reference(user_ids, item_ids, prompt["user"], prompt["item"], reduced, config)
    close(vectors.user, users)
    close(vectors.item, items)
    assert list(vectors.modal_user) == list(vectors.modal_item) == list(dims)
    for modality in dims:
        close(vectors.modal_user[modality], modal_user[modality])
        close(vectors.modal_item[modality], modal_item[modality])
        assert not vectors.modal_user[modality][4].any()
        assert bool(vectors.modal_item[modality][3].any()) == (config.modality_layers == 0)
    assert (vectors.prompt_user is None) == (vectors.prompt_item is None) == (not config.prompt)


def bpr_reference(users, items):
    total = 0.0
    for u, positive, negative in zip(*(x.tolist() for x in BATCH)):
        total += -math.log(1 / (1 + math.exp(-(users[u] @ items[positive] - users[u] @ items[negative]))))
    return total / len(BATCH[0])


@pytest.mark.parametrize("prompt", [True, False])
def test_loss(dims, prompt):
    config = TeacherConfig(dim=DIM, prompt=prompt, feature_loss_weight=0.3, prompt_loss_weight=0.2, l2=0.01, feature_decay=0.05)
    user_ids, item_ids = draw(1, NUM_USERS, DIM), draw(2, NUM_ITEMS, DIM)
    prompts = {"user": draw(3, NUM_USERS, DIM), "item": draw(4, NUM_ITEMS, DIM)}
    reduced = {m: draw(5 + n, NUM_ITEMS, DIM) for n, m in enumerate(dims)}
    vectors = teacher_vectors(make_graph(), user_ids, item_ids, prompts, reduced, config)
    users, items, modal_user, modal_item = vectors_reference(user_ids, item_ids, prompts["user"], prompts["item"], reduced, config)
    rows = [user_ids[BATCH[0]], item_ids[BATCH[1]], item_ids[BATCH[2]]]
    expected = {
        "bpr": bpr_reference(users, items),
        "feature_bpr": 0.3 * sum(bpr_reference(modal_user[m], modal_item[m]) for m in dims),
        "prompt_bpr": 0.2 * bpr_reference(prompts["user"].numpy(), prompts["item"].numpy()),
        "l2": 0.01 * 0.5 * sum(float(x) ** 2 for table in rows for row in table for x in row) / len(BATCH[0]),
        "feature_decay": 0.05 * sum(np.mean([row @ row for row in z.numpy()]) for z in reduced.values()),
    }
    if not prompt:
        del expected["prompt_bpr"]
    terms = teacher_loss(vectors, user_ids, item_ids, Triples(*BATCH, len(BATCH[0])), config)
    assert {name: float(term) for name, term in terms.items()} == pytest.approx(expected, rel=1e-6)

    triples = [Triples(*(x[part] for x in BATCH), len(BATCH[0])) for part in (slice(0, 1), slice(1, 4))]
    shards = [teacher_loss(vectors, user_ids, item_ids, shard, config) for shard in triples]
    for name in expected.keys() - {"feature_decay"}:  # the decay is of the whole catalog, not of the batch
        assert float(shards[0][name] + shards[1][name]) == pytest.approx(float(terms[name]), rel=1e-12)


@pytest.mark.parametrize("leave_one_out", [True, False])
@pytest.mark.parametrize("temperature", [0.3, None])
def test_loss_of_modalities_set_beside_the_collaborative_part(dims, leave_one_out, temperature):
    """BPR is that of the collaborative vectors, and a positive is scored by its user's other items."""
    config = TeacherConfig(
        dim=DIM, fusion="concat", modality_layers=0, prompt=False, feature_loss_weight=1, leave_one_out=leave_one_out,
        feature_temperature=temperature,
    )  # fmt: skip
    user_ids, item_ids = draw(1, NUM_USERS, DIM), draw(2, NUM_ITEMS, DIM)
    reduced = {m: draw(5 + n, NUM_ITEMS, DIM) for n, m in enumerate(dims)}
    graph, pairs = make_graph(), list(zip(*(x.tolist() for x in (USERS[:4], ITEMS[:4], torch.tensor([3, 2, 2, 4])))))
    batch = tuple(torch.tensor(x) for x in zip(*pairs))
    vectors = teacher_vectors(graph, user_ids, item_ids, {}, reduced, config)
    triples = Triples(*batch, 4, entries=graph.entries(*batch[:2]).double())
    terms = teacher_loss(vectors, user_ids, item_ids, triples, config)
    dense = dense_normalised()
    modal = 0.0
    for z in (z.numpy() for z in reduced.values()):
        for u, positive, negative in pairs:
            query = sum(dense[u, i] * z[i] for i in range(NUM_ITEMS) if i != positive or not leave_one_out)
            query = np.zeros(DIM) + query
            ends = [z[positive], z[negative]]
            if temperature:
                query, ends = normalised([query])[0] / temperature, normalised(ends)
            modal += np.log1p(np.exp(-(query @ ends[0] - query @ ends[1]))) / 4
    plain = teacher_vectors(graph, user_ids, item_ids, {}, {}, config)
    close(plain.path_user, vectors.path_user.numpy(), 1e-12)
    scores = [vectors.path_user[u] @ (vectors.path_item[i] - vectors.path_item[j]) for u, i, j in pairs]
    assert float(terms["feature_bpr"]) == pytest.approx(modal, rel=1e-6)
    assert float(terms["bpr"]) == pytest.approx(np.mean([np.log1p(np.exp(-float(s))) for s in scores]), rel=1e-6)


@pytest.mark.parametrize("temperature", [0.3, None])
@pytest.mark.parametrize("fusion", ["sum", "concat"])
def test_scores_by_modality_are_those_that_bpr_on_the_modality_compares(dims, temperature, fusion):
    """Labels, and their gradients, are of cosines over the temperature where the teacher's loss is, else of dot products."""
    config = TeacherConfig(dim=DIM, prompt=False, feature_temperature=temperature, feature_loss_weight=1, fusion=fusion)
    user_ids, item_ids = draw(1, NUM_USERS, DIM), draw(2, NUM_ITEMS, DIM)
    reduced = {m: draw(5 + n, NUM_ITEMS, DIM).requires_grad_() for n, m in enumerate(dims)}
    vectors = teacher_vectors(make_graph(), user_ids, item_ids, {}, reduced, config)
    labels = label(with_compared_modalities(vectors, config), BATCH[0], torch.stack(BATCH[1:], 1))
    for scores, of_users, of_items in zip(labels.modal_scores, vectors.modal_user.values(), vectors.modal_item.values()):
        users, items = of_users.detach().numpy(), of_items.detach().numpy()
        if temperature:
            users, items = normalised(users) / temperature, normalised(items)
        close(scores[:, 1].detach(), np.array([users[u] @ (items[j] - items[i]) for u, i, j in zip(*(x.tolist() for x in BATCH))]))
    of_labels = torch.nn.functional.softplus(labels.modal_scores[:, :, 1]).sum() / 4
    of_loss = teacher_loss(vectors, user_ids, item_ids, Triples(*BATCH, 4), config)["feature_bpr"]
    assert float(of_labels) == pytest.approx(float(of_loss), rel=1e-6)
    for ours, theirs in zip(*(torch.autograd.grad(x, list(reduced.values()), retain_graph=True) for x in (of_labels, of_loss))):
        close(ours, theirs.numpy())


def test_leaving_one_out_needs_vectors_without_propagation():
    with pytest.raises(InputError, match=r"set teacher\.modality_layers=0"):
        TeacherConfig(leave_one_out=True)


def test_terms_without_weight_are_left_out(dims):
    config = TeacherConfig(dim=DIM, feature_loss_weight=0, prompt_loss_weight=0, feature_decay=0)
    ids = IdTables.seeded(NUM_USERS, NUM_ITEMS, DIM, 0.1, seed=0)
    prompt = {"user": torch.randn(NUM_USERS, DIM), "item": torch.randn(NUM_ITEMS, DIM)}
    reduced = {m: torch.randn(NUM_ITEMS, DIM) for m in dims}
    vectors = teacher_vectors(make_graph(), ids.user, ids.item, prompt, reduced, config)
    assert set(teacher_loss(vectors, ids.user, ids.item, Triples(*BATCH, 4), config)) == {"bpr", "l2"}


LOSS = TeacherConfig(
    dim=DIM,
    hidden=[4],
    dropout=0.3,
    feature_prompt_weight=0.5,
    id_prompt_weight=0.5,
    feature_loss_weight=0.4,
    prompt_loss_weight=0.3,
    l2=0.1,
    feature_decay=0.1,
)


def total_loss(config, user_ids, item_ids, prompt, reduced):
    vectors = teacher_vectors(make_graph(), user_ids, item_ids, prompt, reduced, config)
    return sum(teacher_loss(vectors, user_ids, item_ids, Triples(*BATCH, len(BATCH[0])), config).values())


def test_gradients_from_the_loss_to_tables_prompt_and_reduced_features(dims, constants):
    module = perturbed(PromptModule(DIM).double())
    names = list(dict(module.named_parameters()))

    def loss(user_ids, item_ids, *rest):
        weights, reduced = dict(zip(names, rest)), dict(zip(dims, rest[len(names) :]))
        return total_loss(LOSS, user_ids, item_ids, functional_call(module, weights, (constants,)), reduced)

    inputs = [draw(1, NUM_USERS, DIM), draw(2, NUM_ITEMS, DIM), *module.parameters()]
    inputs += [draw(5 + n, NUM_ITEMS, DIM) for n in range(len(dims))]
    assert gradcheck(loss, [x.detach().clone().requires_grad_() for x in inputs])


@pytest.mark.parametrize("keys", [None, (0, 5)])
def test_gradients_of_the_whole_teacher(dims, constants, features, keys):
    reduction = perturbed(FeatureReduction(dims, LOSS).double())
    names, rows = list(dict(reduction.named_parameters())), torch.arange(NUM_ITEMS)

    def loss(user_ids, item_ids, *weights):
        out = functional_call(reduction, dict(zip(names, weights)), (constants, rows, features, keys))
        return total_loss(LOSS, user_ids, item_ids, out, {m: out[f"reduced.{m}"] for m in dims})

    inputs = [draw(1, NUM_USERS, DIM), draw(2, NUM_ITEMS, DIM), *reduction.parameters()]
    # The reduced features are float32, so the step of the finite differences is large and the tolerance with it.
    inputs = [x.detach().clone().requires_grad_() for x in inputs]
    assert gradcheck(loss, inputs, eps=2e-3, atol=2e-3, rtol=1e-2)
    grads = torch.autograd.grad(loss(*inputs), inputs)
    assert all(grad.abs().max() > 1e-3 for grad in grads)


def test_users_and_items_without_interactions_have_finite_gradients(dims, constants, features):
    """At the start of training, where the prompt's biases are zero."""
    single, rows, x = single_inputs(constants, features)
    reduction = build_reduction(dims, LOSS, seed=0)
    ids = IdTables.seeded(NUM_USERS, NUM_ITEMS, DIM, 0.1, seed=0)
    out = reduction(single, rows, x, None)
    total_loss(LOSS, ids.user, ids.item, out, {m: out[f"reduced.{m}"] for m in dims}).backward()
    for parameter in [*reduction.parameters(), *ids.parameters()]:
        assert torch.isfinite(parameter.grad).all()
        assert parameter.grad.abs().max() < 100
    assert not ids.user.grad[4].any()
    assert ids.item.grad[3].any()  # a negative of the batch


@pytest.mark.parametrize(
    ("missing", "modalities", "prompt"),
    [
        ([1], ["image", "text"], True),  # an item without features: its hard and soft prompt are zero
        ([0, 1, 4], ["image", "text"], True),  # a user of such items only
        ([0, 1, 4], ["text"], False),  # without the prompt one missing modality is enough
    ],
)
def test_missing_modalities_leave_gradients_of_ordinary_size(missing, modalities, prompt):
    """At the start of training, where every bias is zero and so are the reduced features of a missing row."""
    dims = {"image": 4, "text": 7}
    features = {m: draw(n, NUM_ITEMS, dim) for n, (m, dim) in enumerate(dims.items())}
    tokens = draw(20, NUM_ITEMS, DIM)
    for modality in modalities:
        features[modality][missing] = 0
    if len(modalities) == len(dims):
        tokens[missing] = 0
    single, rows, x = single_inputs(make_constants(features, tokens), features)
    config = TeacherConfig(dim=DIM, prompt=prompt)
    reduction = build_reduction(dims, config, seed=0)
    ids = IdTables.seeded(NUM_USERS, NUM_ITEMS, DIM, 0.1, seed=0)
    out = reduction(single, rows, x, None)
    total_loss(config, ids.user, ids.item, out, {m: out[f"reduced.{m}"] for m in dims}).backward()
    sizes = {name: float(p.grad.abs().max()) for name, p in reduction.named_parameters() if p.grad is not None}
    assert max(sizes.values()) < 100, sizes


@pytest.mark.parametrize("names", [("visual", "text"), ("0", "a_b"), ("clip-L14", "V"), ("type", "values")])
def test_any_names_of_modalities(names):
    dims = dict(zip(names, (4, 2)))
    features = {m: draw(n, NUM_ITEMS, dim) for n, (m, dim) in enumerate(dims.items())}
    reduction = build_reduction(dims, TeacherConfig(dim=DIM), seed=0)
    out = reduction(*single_inputs(make_constants(features, draw(9, NUM_ITEMS, DIM)), features), None)
    assert [name for name in out if name.startswith("reduced.")] == [f"reduced.{m}" for m in names]


def test_the_start_is_a_function_of_the_seed(dims):
    before = torch.get_rng_state()
    config = TeacherConfig(dim=DIM)
    first, again, other = (build_reduction(dims, config, seed).state_dict() for seed in (0, 0, 1))
    assert torch.equal(torch.get_rng_state(), before)
    name = next(name for name in first if name.startswith("towers") and name.endswith("weight"))
    assert all(torch.equal(first[key], again[key]) for key in first)
    assert not torch.equal(first[name], other[name])
    tables = [IdTables.seeded(400, 300, 8, 0.25, seed) for seed in (0, 0, 1)]
    assert torch.equal(tables[0].user, tables[1].user)
    assert not torch.equal(tables[0].item, tables[2].item)
    assert abs(float(tables[0].user.detach().std()) - 0.25) < 0.01


def test_detached_vectors(dims):
    config = TeacherConfig(dim=DIM, prompt=False)
    ids = IdTables.seeded(NUM_USERS, NUM_ITEMS, DIM, 0.1, seed=0)
    reduced = {m: torch.randn(NUM_ITEMS, DIM, requires_grad=True) for m in dims}
    vectors = teacher_vectors(make_graph(), ids.user, ids.item, {}, reduced, config)
    detached = vectors.detach()
    assert vectors.user.requires_grad
    assert detached.prompt_user is None
    assert torch.equal(detached.user, vectors.user)
    assert not detached.user.requires_grad
    assert not any(x.requires_grad for m in dims for x in (detached.modal_item[m], detached.reduced[m]))


@pytest.mark.parametrize("lazy", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_recomputed_activations(dims, constants, features, lazy, dtype):
    """The same bits, and no hidden layer is kept for the backward pass."""
    config = TeacherConfig(dim=DIM, hidden=[6, 9], dropout=0.3, feature_prompt_weight=0.5)
    single, rows, x = single_inputs(constants, features)
    found = []
    for recompute in (False, True):
        inputs = {m: as_lazy(values) if lazy else values for m, values in x.items()}
        reduction, kept = perturbed(FeatureReduction(dims, config, recompute)).to(dtype), []
        with torch.autograd.graph.saved_tensors_hooks(lambda value, kept=kept: (kept.append(value.shape), value)[1], lambda value: value):
            out = reduction(single, rows, inputs, (0, 1))
        assert ((NUM_ITEMS, 6) in kept) == ((NUM_ITEMS, 9) in kept) == (not recompute)
        assert {value.dtype for value in out.values()} == {torch.float32}
        torch.stack([value.square().sum() for value in out.values()]).sum().backward()
        found.append([*out.values(), *(p.grad for p in reduction.parameters())])
    assert all(torch.equal(plain, again) for plain, again in zip(*found))
    assert all(value.any() for value in found[0])


def as_lazy(values):
    def read(places):
        return values[places], torch.ones(places.numel(), dtype=torch.bool)

    dim = values.shape[1]
    return LazyRows(read, torch.arange(NUM_ITEMS), torch.zeros(dim), torch.ones(dim))


def test_bfloat16_rounds_little(dims, constants, features):
    config = TeacherConfig(dim=DIM, hidden=[6, 9], feature_prompt_weight=0.5)
    reduction, inputs = perturbed(FeatureReduction(dims, config)), single_inputs(constants, features)
    with torch.no_grad():
        plain = reduction(*inputs, None)
        rounded = reduction.bfloat16()(*inputs, None)
    for name, value in plain.items():
        error = float((rounded[name] - value).abs().max() / value.abs().max())
        assert 0 < error < 0.02, name
