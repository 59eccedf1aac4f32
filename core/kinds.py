"""Lists the kinds that the method's settings may name, and the module of each kind's class or function.

A kind declares what it can do in class attributes such as `engines` and `reads_features`, which settings, plan and engines read; they
never decide by a kind's name. This module imports no kind: the registry imports a kind when it is asked for.
"""

from typing import Any

from .registry import Registry, extends

STUDENTS: Registry[Any] = Registry(
    "student",
    "student.kind",
    {
        "lightgcn": ".students.layered:LightGcnStudent",
        "mf": ".students.layered:MfStudent",
        "gcn": ".students.layered:GcnStudent",
        "mlp": ".students.mlp:MlpStudent",
    },
    __package__,
    extends(f"{__package__}.students.base", "Student"),
    "a subclass of promptmm.core.students.Student",
)
TEACHERS: Registry[Any] = Registry(
    "teacher",
    "teacher.kind",
    {
        "promptmm": ".teacher.model:PromptTeacher",
        "mf": ".teacher.collaborative:MfTeacher",
        "lightgcn": ".teacher.collaborative:LightGcnTeacher",
        "vbpr": ".teacher.vbpr:VbprTeacher",
        "lattice": ".teacher.lattice:LatticeTeacher",
        "ensemble": ".teacher.ensemble:EnsembleTeacher",
        "popularity": ".linear.popularity:PopularityTeacher",
        "item_knn": ".linear.item_knn:ItemKnnTeacher",
        "rp3beta": ".linear.rp3beta:Rp3betaTeacher",
        "ease": ".linear.ease:EaseTeacher",
        "spectral": ".linear.spectral:SpectralTeacher",
        "polynomial": ".linear.polynomial:PolynomialTeacher",
        "content": ".linear.content:ContentTeacher",
        "ials": ".linear.ials:IalsTeacher",
        "vectors": ".teacher.vectors:VectorsTeacher",
    },
    __package__,
    extends(f"{__package__}.teacher.base", "Teacher"),
    "a subclass of promptmm.core.teacher.WholeTeacher",
)
LOSSES: Registry[Any] = Registry(
    "distillation loss",
    "distill.losses",
    {
        "pair": ".objectives.terms:pair",
        "list": ".objectives.terms:by_modality",
        "embedding": ".objectives.terms:embedding",
        "score": ".objectives.terms:by_score",
    },
    __package__,
    callable,
    "a function of one promptmm.core.objectives.LossInputs",
)
CANDIDATES: Registry[Any] = Registry(
    "candidate policy",
    "distill.candidates",
    {"mixed": ".objectives.candidates:MixedCandidates", "popular": ".objectives.candidates:PopularCandidates"},
    __package__,
    extends(f"{__package__}.objectives.candidates", "CandidatePolicy"),
    "a subclass of promptmm.core.objectives.CandidatePolicy",
)
METRICS: Registry[Any] = Registry(
    "metric",
    "evaluation.metrics",
    {name: f".metrics:{name.upper()}" for name in ("recall", "ndcg", "ndcg_retrieved", "precision", "hit_ratio", "mrr", "map", "coverage")},
    __package__,
    lambda kind: callable(kind) or getattr(kind, "component", None) == "metric",
    "a function of a user's hits, as promptmm.core.metrics.UserMetric",
)
