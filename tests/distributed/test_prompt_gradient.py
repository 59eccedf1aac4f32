"""For the same batch, candidates and student, inline and rounds give the prompt the same gradient in the first step."""

import pytest
import torch
from promptmm.core.config import DistillationConfig, StudentConfig, TeacherConfig
from promptmm.core.distillation import Decoders, student_terms
from promptmm.core.features import FeatureMoments, Standardisation, principal_axes
from promptmm.core.graph import BipartiteGraph
from promptmm.core.sampling import UnseenItems, candidate_lists
from promptmm.core.scoring import candidate_scores
from promptmm.core.student import build_student
from promptmm.core.teacher import IdTables, PromptConstants, build_reduction
from promptmm.distributed.prompt_tuning import PromptTuner
from promptmm.distributed.resident import ResidentTeacher
from promptmm.distributed.worker import Worker


def resident_teacher(config: TeacherConfig, num_users=30, num_items=20):
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
    worker = Worker(0, 1, torch.device("cpu"), ("here",))
    rows = torch.arange(num_items)
    return ResidentTeacher(worker, config, graph, constants, rows, features, standards, [num_items], rows)


@pytest.fixture
def setting():
    config = TeacherConfig(dim=6, layers=1)
    resident = resident_teacher(config)
    graph = resident.graph
    distill = DistillationConfig(num_uniform=5, regime="inline", decoder=True)

    def tuner():
        reduction = build_reduction({m: x.shape[1] for m, x in resident.features.items()}, config, 3)
        reduction.requires_grad_(False)
        reduction.prompt.requires_grad_(True)
        ids = IdTables(graph.num_users, graph.num_items, 6, 0.3, 5)
        return PromptTuner(resident, reduction, ids.user.detach(), ids.item.detach(), distill)

    student = build_student(StudentConfig(dim=6, init_scale=0.3), graph.num_users, graph.num_items, 1)
    decoders = Decoders(list(resident.features), 6, 6, True)
    examples = torch.arange(40)
    users, positives = graph.users.rows[examples], graph.users.columns[examples]
    candidates = candidate_lists(users, positives, examples, UnseenItems(graph.users), 5, None, 0, 0, 0)
    return graph, tuner, student, decoders, users, candidates


def gradients(tuner):
    return {name: p.grad.clone() for name, p in tuner.reduction.prompt.named_parameters()}


def test_inline_and_rounds_agree(setting):
    graph, make_tuner, student, decoders, users, candidates = setting
    unique = torch.unique(candidates[:, 0])
    inline = make_tuner()  # the student's loop: one backward pass for both
    su, si = student.vectors(graph)
    rows = student.rows(users, [candidates[:, 0], candidates[:, 1]])
    scores = candidate_scores(su, si, users, candidates)
    terms = student_terms(scores, rows, 1e-4, len(users))
    terms.update(inline.terms(scores, si, users, candidates, unique, decoders, len(users)))
    torch.stack(list(terms.values())).sum().backward()
    assert float(student.ids.user.grad.abs().sum()) > 0
    rounds = make_tuner()  # the tuning loop: the student is fixed
    fixed = [x.detach() for x in student.vectors(graph)]
    terms = rounds.terms(candidate_scores(*fixed, users, candidates), fixed[1], users, candidates, unique, decoders, len(users))
    torch.stack(list(terms.values())).sum().backward()
    expected = gradients(inline)
    for name, grad in gradients(rounds).items():
        assert float(grad.abs().sum()) > 0, name
        assert torch.allclose(grad, expected[name], rtol=1e-5, atol=1e-8), name


def test_only_the_prompt_moves(setting):
    graph, make_tuner, student, decoders, users, candidates = setting
    tuner = make_tuner()
    before = {name: p.clone() for name, p in tuner.reduction.state_dict().items()}
    su, si = student.vectors(graph)
    terms = tuner.terms(
        candidate_scores(su, si, users, candidates), si, users, candidates, torch.unique(candidates[:, 0]), decoders, len(users)
    )
    torch.stack(list(terms.values())).sum().backward()
    tuner.step(Worker(0, 1, torch.device("cpu"), ("here",)))
    moved = {name for name, p in tuner.reduction.state_dict().items() if not torch.equal(p, before[name])}
    assert moved == {f"prompt.{n}" for n in ("item_weight", "item_bias", "user_weight", "user_bias")}
