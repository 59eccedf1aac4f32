"""Declares the settings of distillation."""

from dataclasses import dataclass
from typing import Any

from ..errors import InputError
from ..kinds import CANDIDATES, LOSSES
from ..settings import check_bounds, setting


@dataclass(frozen=True)
class DistillationConfig:
    """Settings of what the student learns from the teacher (docs/method.md 3 and 4); section `distill`."""

    use_teacher: bool = setting(True, "distil; false trains the student alone, without labels")
    candidates: str = setting("mixed", "policy of the candidate lists: mixed, popular, or your own as module:Class", kinds=CANDIDATES)
    losses: dict[str, float] = setting({}, "further losses on the labels, with their weights: {module:function: weight}")
    options: dict[str, Any] = setting({}, "settings that losses and candidate policies of your own read")
    num_uniform: int = setting(20, "uniformly drawn unseen candidates in a list; the first is BPR's negative", ge=1)
    popularity: float = setting(
        0.75,
        "with candidates=popular: exponent of the items' degrees, in proportion to which unseen candidates after the first are drawn",
        ge=0,
        le=2,
    )
    num_top: int = setting(0, "candidates in a list that are drawn from the teacher's top-ranked unseen items", ge=0)
    top_depth: int = setting(100, "depth of the teacher's ranking that distill.num_top draws from, items", ge=1)
    num_student: int = setting(
        0,
        "candidates in a list that are drawn from the student's own top-ranked unseen items, ranked anew at the start of every epoch; the "
        "teacher scores them in the student's worker; needs cluster.engine=full",
        ge=0,
    )
    student_depth: int = setting(100, "depth of the student's ranking that distill.num_student draws from, items", ge=1)
    temperature: float = setting(1.0, "τ of the pair and list losses", gt=0)
    reweight_temperature: float = setting(0.5, "τ_ω of the modality re-weighting", gt=0)
    reweight: bool = setting(True, "modality-aware re-weighting ω; false gives all modalities the same weight")
    disentangle: bool = setting(True, "weight KL over the negatives by β; false keeps KL's own factor 1 - b^T_0 (the plain KL with α = 1)")
    pair_weight: float = setting(1.0, "λ1, weight of ranking distillation on pairs", ge=0)
    list_weight: float = setting(0.1, "λ2, weight of modality-aware ranking distillation on lists", ge=0)
    embedding_weight: float = setting(0.1, "λ3, weight of modality-aware embedding distillation", ge=0)
    score_weight: float = setting(0.0, "λ4, weight of ranking distillation on lists by the teacher's final score", ge=0)
    score_positive: bool = setting(
        True,
        "whether the list of L_score holds the example's positive; false leaves it to the candidates what is learnt, so that a user's "
        "lists are the teacher's view alone",
    )
    user_balance: float = setting(
        0.0,
        "weigh an example in the losses on pairs and lists by its user's degree^-user_balance; 0 gives all examples the same weight, 1 "
        "gives all users the same total weight",
        ge=0,
        le=1,
    )
    confident_weight: float = setting(1.0, "α, weight of KL over {positive, rest}", ge=0)
    uncertain_weight: float = setting(1.0, "β, weight of KL over the negatives; read with disentangle=true only", ge=0)
    embedding_power: float = setting(2.0, "γ, the power of the cosine error in the embedding loss", ge=1)
    decoder: bool = setting(False, "learn a linear decoder for each modality even where student.dim and teacher.dim agree")
    regime: str = setting(
        "rounds",
        "prompt-tuning: rounds (labels come from other processes, and the prompt is tuned between rounds) or inline (the teacher stays in "
        "the student's worker, and the prompt steps with every student step)",
        choices=("rounds", "inline"),
    )
    rounds: int = setting(1, "rounds of labels; 1 is offline distillation with a fixed prompt", ge=1)
    tuning_steps: int = setting(50, "steps of the prompt between two rounds; read with rounds > 1 only", ge=0)
    tuning_learning_rate: float = setting(1e-3, "Adam's step size for prompt-tuning; read where the prompt is tuned", gt=0)
    anchor_weight: float = setting(1.0, "λ_anchor, weight of the teacher's own loss in prompt-tuning; read where the prompt is tuned", ge=0)

    def __post_init__(self) -> None:
        check_bounds(self, "distill")
        if self.num_top and self.num_top > self.top_depth:
            raise InputError(
                f"distill.num_top={self.num_top} is more than distill.top_depth={self.top_depth}; "
                "draw fewer or deepen the teacher's ranking"
            )
        if self.num_student and self.num_student > self.student_depth:
            raise InputError(
                f"distill.num_student={self.num_student} is more than distill.student_depth={self.student_depth}; "
                "draw fewer or deepen the student's ranking"
            )
        if self.num_student and not self.use_teacher:
            raise InputError(
                f"distill.num_student={self.num_student} are candidates for a teacher to score, and distill.use_teacher=false trains "
                "without one; set distill.num_student=0, or distill.use_teacher=true"
            )
        if self.regime == "inline" and self.rounds != 1:
            raise InputError(f"distill.rounds={self.rounds} has no meaning with distill.regime=inline; set rounds=1 or regime=rounds")
        for name, weight in self.losses.items():
            if weight < 0:
                raise InputError(f"distill.losses: {name} has the weight {weight}; expected at least 0")
            if name in LOSSES.names:
                raise InputError(f"distill.losses: {name} has a setting of its own; set distill.{name}_weight={weight} in place of it")
            LOSSES.check(name)
        if self.losses and not self.use_teacher:
            raise InputError(
                f"distill.losses={self.losses} learn from a teacher's labels, and distill.use_teacher=false trains without one; leave "
                "distill.losses out, or set distill.use_teacher=true"
            )
        if self.use_teacher and not self.loss_weights():
            raise InputError(
                "distill.pair_weight, list_weight, embedding_weight and score_weight are all 0: there is nothing to learn from the "
                "teacher; set one of them, or distill.use_teacher=false"
            )
        if self.regime == "inline" and not self.use_teacher:
            raise InputError("distill.regime=inline needs distill.use_teacher=true")

    @property
    def tunes_prompt(self) -> bool:
        """Whether the teacher's prompt is tuned: beside the student, or between rounds of labels."""
        return self.regime == "inline" or self.rounds > 1

    @property
    def has_resident_teacher(self) -> bool:
        """Whether the student's workers hold the teacher while they train."""
        return self.use_teacher and self.regime == "inline"

    def loss_weights(self) -> dict[str, float]:
        """Returns the weights of all distillation losses whose weight is not 0, by name."""
        shipped = {"pair": self.pair_weight, "list": self.list_weight, "embedding": self.embedding_weight, "score": self.score_weight}
        return {name: weight for name, weight in {**shipped, **self.losses}.items() if weight}
