"""Declares the settings that say what to learn. Those that say where to run are in `distributed/config.py`."""

import dataclasses
from dataclasses import dataclass
from typing import Any

import torch

from .errors import InputError
from .kinds import CANDIDATES, LOSSES, METRICS, STUDENTS, TEACHERS
from .linear.config import LinearConfig
from .settings import check_bounds, setting


@dataclass(frozen=True)
class OptimizerConfig:
    """Settings of one training stage: epochs, batches and learning rate; sections `teacher.train` and `student.train`."""

    epochs: int = setting(100, "largest number of epochs; the exact number where there is no validation split", ge=1)
    batch_size: int = setting(2048, "train interactions in a step, over all workers", ge=1)
    learning_rate: float = setting(0.001, "Adam's step size for the ID tables, and for a student's other weights", gt=0)
    patience: int = setting(10, "evaluations without a better validation metric before training stops", ge=1)
    evaluate_every: int = setting(1, "epochs between validations", ge=1)
    checkpoint_every: int = setting(5, "epochs between checkpoints", ge=1)
    lr_decay: float = setting(1.0, "factor on the learning rates after each epoch", gt=0, le=1)

    def __post_init__(self) -> None:
        check_bounds(self, "train")


@dataclass(frozen=True)
class TeacherConfig:
    """Settings of the large multi-modal teacher (docs/method.md 1) or of another model in its place (docs/method.md 7); section `teacher`.

    Every kind that is trained reads dim, l2, user_balance, start, init_scale and train; linear kinds, which are fitted without steps, read
    `linear` alone. The help of a setting that only some kinds read names these.
    """

    dim: int = setting(64, "embedding size d", ge=1)
    kind: str = setting(
        "promptmm",
        "model of the teacher: promptmm; a baseline: mf (MF-BPR), lightgcn, vbpr or lattice; a linear model, which is fitted in one go: "
        "popularity, item_knn, rp3beta, ease, spectral, polynomial, content or ials; ensemble, several of them together "
        "(teacher.components); or your own as module:Class (docs/extending.md). All but promptmm need cluster.engine=full. mf, lightgcn "
        "and linear models have no vectors by modality: distil from them with distill.list_weight=0 and distill.embedding_weight=0",
        kinds=TEACHERS,
    )
    layers: int = setting(2, "layers L of the collaborative path; read by promptmm, lightgcn and lattice", ge=0)
    item_neighbours: int = setting(10, "nearest neighbours k of an item in the item graph; read by lattice", ge=1)
    item_layers: int = setting(1, "layers of convolution over the item graph; read by lattice", ge=0)
    item_graph_blend: float = setting(
        0.9, "λ, the share of the raw features' item graph beside the one of the transformed features; read by lattice", ge=0, le=1
    )
    modality_layers: int = setting(
        1, "rounds of modality-aware propagation; 0: a user's vector is the sum of its items', an item's is its own; read by promptmm", ge=0
    )
    whiten: bool = setting(
        False, "decorrelate each modality's standardised columns before the reduction (ZCA with shrinkage); read by promptmm"
    )
    hidden: list[int] = setting([], "hidden sizes of the reduction towers; [] is one linear layer; read by promptmm")
    reduction_dtype: str = setting(
        "float32",
        "number format that the reduction towers compute in; bfloat16 rounds their weights and the prompt's, of which Adam keeps "
        "float32 masters and moments, and needs cluster.zero_stage of 1 to 3",
        choices=("float32", "bfloat16"),
    )
    dropout: float = setting(0.2, "dropout on the reduced features; read by promptmm", ge=0, lt=1)
    prompt: bool = setting(True, "learn the prompt; false is the ablation without a prompt; read by promptmm")
    feature_prompt_weight: float = setting(0.1, "λ_f, the prompt's share in the feature reduction; read by promptmm", ge=0)
    id_prompt_weight: float = setting(0.1, "λ_p, the prompt's share in the ID vectors; read by promptmm", ge=0)
    fusion: str = setting(
        "sum",
        "how the modalities enter the final vectors: sum adds their vectors to the collaborative ones, and BPR trains the sum; concat puts "
        "them beside the collaborative ones, with each part of a user's vector at unit length (the modalities' times η), and BPR trains "
        "the collaborative part alone; read by promptmm",
        choices=("sum", "concat"),
    )
    fusion_weight: float = setting(1.0, "η, the modalities' share in the final vectors; read by promptmm", ge=0)
    feature_loss_weight: float = setting(0.1, "β_feat, weight of BPR on each modality; read by promptmm", ge=0)
    feature_temperature: float | None = setting(
        None, "τ_f: BPR on a modality compares cosines divided by τ_f; not set: it compares dot products; read by promptmm", gt=0
    )
    leave_one_out: bool = setting(
        False,
        "leave the positive out of its user's modality vectors in BPR on a modality; needs teacher.modality_layers=0; read by promptmm",
    )
    prompt_loss_weight: float = setting(0.01, "β_prompt, weight of BPR on the prompt; read by promptmm", ge=0)
    loss: str = setting(
        "bpr",
        "what trains the collaborative vectors (with fusion=sum the final ones): bpr, dot products of the positive and one uniform unseen "
        "item; softmax, the cross-entropy of the positive among softmax_items items, by cosines, which then also rank; read by promptmm, "
        "mf and lightgcn",
        choices=("bpr", "softmax"),
    )
    temperature: float = setting(0.2, "τ_s that the cosines of loss=softmax are divided by", gt=0)
    softmax_items: int = setting(
        1024,
        "uniform items that a step's positives are compared with, the same for all of its examples; all items where there are fewer",
        ge=1,
    )
    l2: float = setting(1e-4, "L2 on the batch's rows of the ID tables, per example", ge=0)
    user_balance: float = setting(
        0.0,
        "weigh a train interaction in the loss and in L2 by its user's degree^-user_balance; 0 gives all interactions the same weight, 1 "
        "gives all users the same total weight",
        ge=0,
        le=1,
    )
    examples: str = setting(
        "interactions",
        "what an epoch visits: interactions, each train interaction once; users, every user alike, with one of the user's train items",
        choices=("interactions", "users"),
    )
    feature_decay: float = setting(
        1e-4, "δ, weight of the mean squared norm of the reduced features; read by promptmm, vbpr and lattice", ge=0
    )
    reduction_learning_rate: float = setting(
        0.001, "Adam's step size for reduction layers and prompt, and for the weights that vbpr and lattice apply to features", gt=0
    )
    start: str = setting(
        "random",
        "what the ID tables begin with: random, normal values; spectral, the leading singular vectors of the normalised train graph, which "
        "rank well before the first step",
        choices=("random", "spectral"),
    )
    init_scale: float = setting(0.1, "standard deviation of the ID tables at the start", gt=0)
    components: dict[str, dict[str, Any]] = setting(
        {"promptmm": {}, "spectral": {}, "ease": {}, "content": {}},
        "teachers whose scores kind=ensemble adds up, with weights that validation chooses: {name: settings of this section that differ}; "
        "the name is the kind where no kind is set, and {name: {artifact: URL}} takes a teacher of another run on the same dataset",
    )
    ensemble_rank: int = setting(512, "columns of an ensemble's vectors at most: those with the closest scores; read by ensemble", ge=1)
    options: dict[str, Any] = setting({}, "settings that a teacher of your own reads")
    train: OptimizerConfig = OptimizerConfig()
    linear: LinearConfig = LinearConfig()

    def __post_init__(self) -> None:
        check_bounds(self, "teacher")
        check_balance("teacher", self.user_balance, "teacher", self.examples)
        if self.loss not in TEACHERS.get(self.kind).losses:
            raise InputError(
                f"teacher.loss={self.loss}: the {self.kind} teacher trains with {' or '.join(TEACHERS.get(self.kind).losses)}; set that, "
                "or another teacher.kind"
            )
        TEACHERS.get(self.kind).check(self)
        if any(size < 1 for size in self.hidden):
            raise InputError(f"teacher.hidden={self.hidden}: every hidden size must be at least 1")
        if self.leave_one_out and self.modality_layers:
            raise InputError(
                f"teacher.leave_one_out=true with teacher.modality_layers={self.modality_layers}: after a round of propagation a user's "
                "vector holds the positive over other users too; set teacher.modality_layers=0"
            )

    @property
    def is_baseline(self) -> bool:
        """Returns whether the teacher is one module that every worker holds whole, and not PromptMM's own with towers and prompt."""
        return not TEACHERS.get(self.kind).has_towers

    @property
    def reads_features(self) -> bool:
        """Returns whether the teacher learns from the modalities."""
        return bool(TEACHERS.get(self.kind).learns_from_features(self))

    @property
    def has_modality_vectors(self) -> bool:
        """Returns whether the teacher has vectors for each modality, which losses by modality learn from."""
        return bool(TEACHERS.get(self.kind).has_modality_vectors(self))

    @property
    def tower_dtype(self) -> torch.dtype:
        """Returns the dtype of the weights that the reduction towers compute with."""
        return torch.bfloat16 if self.reduction_dtype == "bfloat16" else torch.float32


@dataclass(frozen=True)
class SamplingConfig:
    """Settings of the sampled engine's neighbour blocks; section `sampling`."""

    fan_outs: list[int] = setting(
        [10], "neighbours drawn for a node, by hop from the batch outwards; -1: all of them; further hops take the last figure"
    )
    exclude_seed_edges: bool = setting(
        False, "leave the batch's own positive pairs out of its blocks, in both directions; false: they stay, as in the full engine"
    )
    prefetch: int = setting(2, "batches (or micro-batches) that are made ahead in the background", ge=1)

    def __post_init__(self) -> None:
        check_bounds(self, "sampling")
        if not self.fan_outs or any(n < 1 and n != -1 for n in self.fan_outs):
            raise InputError(f"sampling.fan_outs={self.fan_outs}: name at least one fan-out, each at least 1, or -1 for all neighbours")

    def fan_outs_of(self, hops: int) -> list[int]:
        """Returns the fan-outs of `hops` hops."""
        return [self.fan_outs[min(hop, len(self.fan_outs) - 1)] for hop in range(hops)]


@dataclass(frozen=True)
class StudentConfig:
    """Settings of the light student that ships (docs/method.md 2); section `student`."""

    kind: str = setting("lightgcn", "model of the student: lightgcn, mf, gcn, mlp, or your own as module:Class", kinds=STUDENTS)
    dim: int = setting(64, "embedding size d_S", ge=1)
    layers: int = setting(2, "propagation layers L_S (mlp: layers of the head)", ge=0)
    warm_start: bool = setting(
        False, "start the ID tables from the teacher's final vectors, or where student.dim is smaller from those with the closest scores"
    )
    l2: float = setting(1e-4, "L2 on the batch's rows of the ID tables, per example", ge=0)
    user_balance: float = setting(
        0.0,
        "weigh a train interaction in BPR and L2 by its user's degree^-user_balance; 0 gives all interactions the same weight, 1 gives all "
        "users the same total weight",
        ge=0,
        le=1,
    )
    examples: str = setting(
        "interactions",
        "what an epoch visits: interactions, each train interaction once; users, every user alike, with one of the user's train items",
        choices=("interactions", "users"),
    )
    bpr_weight: float = setting(1.0, "weight of BPR on the train pairs; 0 leaves it to the teacher what is learnt", ge=0)
    start: str = setting(
        "random",
        "what the ID tables begin with: random, normal values; spectral, the leading singular vectors of the normalised train graph, which "
        "rank well before the first step; with warm_start it has no meaning",
        choices=("random", "spectral"),
    )
    init_scale: float = setting(0.1, "standard deviation of the ID tables at the start", gt=0)
    options: dict[str, Any] = setting({}, "settings that a student of your own reads")
    train: OptimizerConfig = OptimizerConfig()

    def __post_init__(self) -> None:
        check_bounds(self, "student")
        check_balance("student", self.user_balance, "student", self.examples)
        if self.start == "spectral" and self.starts_from_teacher:
            raise InputError(
                "student.start=spectral has no meaning for a student that starts from the teacher's vectors; leave it out, or set "
                "student.warm_start=false and a student.kind that learns its rows"
            )
        least = STUDENTS.get(self.kind).least_layers
        if self.layers < least:
            layers = "one layer" if least == 1 else f"{least} layers"
            raise InputError(
                f"student.layers={self.layers}: the {self.kind} student needs at least {layers}; set student.layers={least} or another "
                "student.kind"
            )

    @property
    def starts_from_teacher(self) -> bool:
        """Returns whether the student needs a teacher, whose final vectors are its start or its frozen rows."""
        return self.warm_start or not STUDENTS.get(self.kind).learns_rows


@dataclass(frozen=True)
class DistillationConfig:
    """Settings of what the student learns from the teacher (docs/method.md 3 and 4); section `distill`."""

    use_teacher: bool = setting(True, "distil; false trains the student alone, without labels")
    candidates: str = setting("mixed", "policy of the candidate lists: mixed, or your own as module:Class", kinds=CANDIDATES)
    losses: dict[str, float] = setting({}, "further losses on the labels, with their weights: {module:function: weight}")
    options: dict[str, Any] = setting({}, "settings that losses and candidate policies of your own read")
    num_uniform: int = setting(20, "uniformly drawn unseen candidates in a list; the first is BPR's negative", ge=1)
    num_top: int = setting(0, "candidates in a list that are drawn from the teacher's top-ranked unseen items", ge=0)
    top_depth: int = setting(100, "depth of the teacher's ranking that distill.num_top draws from, items", ge=1)
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


@dataclass(frozen=True)
class EvaluationConfig:
    """Settings of full-ranking evaluation (docs/method.md 5); section `evaluation`."""

    cutoffs: list[int] = setting([10, 20, 50], "list lengths K of the reported metrics")
    select_by: str = setting("recall@20", "validation metric that chooses the epoch")
    memory_mib: int = setting(256, "memory for one block of scores, MiB", ge=1)
    metrics: list[str] = setting([], "further metrics of your own, each as module:function")

    def __post_init__(self) -> None:
        check_bounds(self, "evaluation")
        if not self.cutoffs or any(k < 1 for k in self.cutoffs):
            raise InputError(f"evaluation.cutoffs={self.cutoffs}: name at least one list length, each at least 1")
        for further in self.metrics:
            METRICS.check(further)
        name, _, cutoff = self.select_by.rpartition("@")
        if name not in self.metric_names or cutoff not in map(str, self.cutoffs):
            raise InputError(
                f"evaluation.select_by={self.select_by!r}: expected METRIC@K with METRIC one of {', '.join(self.metric_names)} "
                f"and K one of evaluation.cutoffs={self.cutoffs}"
            )

    @property
    def metric_names(self) -> list[str]:
        """Returns the names of all metrics that an evaluation computes."""
        return [*METRICS.names, *(name for name in self.metrics if name not in METRICS.names)]

    def check_catalog(self, num_items: int) -> None:
        """Raises InputError where a cutoff is larger than the catalog."""
        if max(self.cutoffs) > num_items:
            raise InputError(f"evaluation.cutoffs={self.cutoffs}: {max(self.cutoffs)} is larger than the catalog of {num_items} items")


def check_balance(section: str, user_balance: float, stage: str, examples: str) -> None:
    """Checks that examples are not visited by user and weighed by their users' interactions too.

    Args:
        section: The section of `user_balance`.
        user_balance: Exponent of the examples' weights.
        stage: The section of `examples`.
        examples: What an epoch of the stage visits.

    Raises:
        InputError: they are.
    """
    if examples == "users" and user_balance:
        raise InputError(
            f"{section}.user_balance={user_balance} has no meaning with {stage}.examples=users, which visits every user alike; leave one "
            "of them out"
        )


def as_dict(config: Any) -> Any:
    """Returns a settings object as nested dictionaries of JSON-able values."""
    return dataclasses.asdict(config)
