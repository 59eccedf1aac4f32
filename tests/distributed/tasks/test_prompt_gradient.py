"""For the same batch, candidates and student, inline and rounds give the prompt the same gradient in the first step."""

import pytest
import torch
from promptmm.core.config import DistillationConfig, StudentConfig, TeacherConfig
from promptmm.core.features import FeatureMoments, Standardisation, principal_axes
from promptmm.core.graph import BipartiteGraph
from promptmm.core.objectives import CandidateRequest, Decoders, StudentSide, candidate_lists, student_terms
from promptmm.core.rows import IdTables
from promptmm.core.sampling import UnseenItems
from promptmm.core.scoring import candidate_scores
from promptmm.core.students import build_student
from promptmm.core.teacher.reduction import PromptConstants, build_reduction
from promptmm.distributed.engines.full.catalog import WholeCatalog
from promptmm.distributed.features import FeatureConstants
from promptmm.distributed.tasks.tuning import PromptTuner
from promptmm.distributed.worker import Worker

ALONE = Worker(0, 1, torch.device("cpu"), ("here",))


def whole_catalog(config: TeacherConfig, num_users=30, num_items=20):
    generator = torch.Generator().manual_seed(0)
    pairs = torch.randperm(num_users * num_items, generator=generator)[:150]
    graph = BipartiteGraph.from_pairs(pairs // num_items, pairs % num_items, num_users, num_items)
    present = torch.ones(num_items, dtype=torch.bool)
    features, standards, tokens = {}, {}, torch.zeros(num_items, config.dim)
    for modality, dim in (("visual", 12), ("textual", 9)):
        raw = torch.randn(num_items, dim, generator=generator)
        moments = FeatureMoments.of(raw, present)
        standards[modality] = Standardisation.from_moments(moments)
        features[modality] = standards[modality].apply(raw, present)
        tokens += (features[modality].double() @ principal_axes(moments, standards[modality], config.dim)).float() / 2
    gram = {m: tokens.T @ x for m, x in features.items()}
    constants = PromptConstants(tokens, graph.to_users(tokens), gram, {m: x.sum(0) for m, x in features.items()})
    rows, fixed = torch.arange(num_items), FeatureConstants(standards, gram, constants.column_sums)
    return WholeCatalog(ALONE, graph, rows, features, constants, fixed, [num_items], rows)


class Student:
    """A student on learnt tables, as the full engine holds it."""

    def __init__(self, graph):
        self.graph, config = graph, StudentConfig(dim=6, init_scale=0.3)
        self.model, self.ids = build_student(config, 1), IdTables.seeded(graph.num_users, graph.num_items, 6, 0.3, 1)

    def vectors(self):
        return self.model.vectors(self.graph, self.ids.user, self.ids.item)

    def rows(self, users, items):
        return self.model.regularised(self.ids.user[users], [self.ids.item[each] for each in items])


@pytest.fixture(params=[None, 0.2], ids=["dot products by modality", "cosines by modality"])
def setting(request):
    config = TeacherConfig(dim=6, layers=1, feature_temperature=request.param)
    catalog = whole_catalog(config)
    graph = catalog.graph
    distill = DistillationConfig(num_uniform=5, regime="inline", decoder=True)

    def tuner():
        reduction = build_reduction(catalog.dims, config, 3)
        reduction.requires_grad_(False)
        reduction.prompt.requires_grad_(True)
        ids = IdTables.seeded(graph.num_users, graph.num_items, 6, 0.3, 5)
        return PromptTuner(catalog, config, reduction, ids.user.detach(), ids.item.detach(), distill)

    decoders = Decoders(list(catalog.features), 6, 6, True)
    examples = torch.arange(40)
    users, positives = graph.users.rows[examples], graph.users.columns[examples]
    candidates = candidate_lists(distill, CandidateRequest(users, positives, examples, UnseenItems(graph.users), 0, 0))
    return tuner, Student(graph), decoders, users, candidates


def side(scores, items, candidates, decoders):
    unique = torch.unique(candidates[:, 0])
    return StudentSide(scores, items, unique, decoders, len(candidates), unique.numel()), unique


def gradients(tuner):
    return {name: p.grad.clone() for name, p in tuner.reduction.prompt.named_parameters()}


def test_inline_and_rounds_agree(setting):
    make_tuner, student, decoders, users, candidates = setting
    inline = make_tuner()  # the student's loop: one backward pass for both
    su, si = student.vectors()
    rows = student.rows(users, [candidates[:, 0], candidates[:, 1]])
    scores = candidate_scores(su, si, users, candidates)
    terms = student_terms(scores, rows, 1e-4, len(users))
    own, unique = side(scores, si, candidates, decoders)
    terms.update(inline.terms(own, users, candidates, unique))
    torch.stack(list(terms.values())).sum().backward()
    assert float(student.ids.user.grad.abs().sum()) > 0
    rounds = make_tuner()  # the tuning loop: the student is fixed
    fixed = [x.detach() for x in student.vectors()]
    own, unique = side(candidate_scores(*fixed, users, candidates), fixed[1], candidates, decoders)
    terms = rounds.terms(own, users, candidates, unique)
    torch.stack(list(terms.values())).sum().backward()
    expected = gradients(inline)
    for name, grad in gradients(rounds).items():
        assert float(grad.abs().sum()) > 0, name
        assert torch.allclose(grad, expected[name], rtol=1e-5, atol=1e-8), name


def test_only_the_prompt_moves(setting):
    make_tuner, student, decoders, users, candidates = setting
    tuner = make_tuner()
    learner, before = tuner.learner(ALONE), {name: p.clone() for name, p in tuner.reduction.state_dict().items()}
    su, si = student.vectors()
    own, unique = side(candidate_scores(su, si, users, candidates), si, candidates, decoders)
    terms = tuner.terms(own, users, candidates, unique)
    torch.stack(list(terms.values())).sum().backward()
    learner.step()
    moved = {name for name, p in tuner.reduction.state_dict().items() if not torch.equal(p, before[name])}
    assert moved == {f"prompt.{n}" for n in ("item_weight", "item_bias", "user_weight", "user_bias")}
