"""Declares the settings of the teacher."""

from dataclasses import dataclass
from typing import Any

import torch

from ..errors import InputError
from ..kinds import TEACHERS
from ..linear.config import LinearConfig
from ..settings import check_bounds, setting
from .checks import as_dict, check_balance, check_start
from .training import OptimizerConfig, examples_setting, start_exponent_setting, start_setting, user_balance_setting
from .vectors import VectorsConfig


@dataclass(frozen=True)
class TeacherConfig:
    """Settings of the large multi-modal teacher (docs/method.md 1) or of another model in its place (docs/method.md 7); section `teacher`.

    Every kind that is trained reads dim, l2, user_balance, start with its exponents, init_scale and train; linear kinds, which are fitted
    without steps, read `linear` alone, and vectors, which was trained elsewhere, reads `vectors` alone. The help of a setting that only
    some kinds read names these.
    """

    dim: int = setting(64, "embedding size d", ge=1)
    kind: str = setting(
        "promptmm",
        "model of the teacher: promptmm; a baseline: mf (MF-BPR), lightgcn, vbpr or lattice; a linear model, which is fitted in one go: "
        "popularity, item_knn, rp3beta, ease, spectral, polynomial, content or ials; vectors, a model that was trained elsewhere "
        "(teacher.vectors); ensemble, several of them together (teacher.components); or your own as module:Class (docs/extending.md). "
        "All but promptmm and vectors need cluster.engine=full; "
        "spectral with filter=ideal and polynomial with power=1 do not where the settings that they read are given, nor does ensemble "
        "where none of its components does. mf, lightgcn "
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
    user_balance: float = user_balance_setting()
    examples: str = examples_setting()
    feature_decay: float = setting(
        1e-4, "δ, weight of the mean squared norm of the reduced features; read by promptmm, vbpr and lattice", ge=0
    )
    reduction_learning_rate: float = setting(
        0.001, "Adam's step size for reduction layers and prompt, and for the weights that vbpr and lattice apply to features", gt=0
    )
    start: str = start_setting()
    start_user_exponent: float = start_exponent_setting("user")
    start_item_exponent: float = start_exponent_setting("item")
    init_scale: float = setting(0.1, "standard deviation of the ID tables at the start", gt=0)
    components: dict[str, dict[str, Any]] = setting(
        {"promptmm": {}, "spectral": {}, "ease": {}, "content": {}},
        "teachers whose scores kind=ensemble adds up, with weights that validation chooses: {name: settings of this section that differ}; "
        "the name is the kind where no kind is set, {name: {artifact: URL}} takes a teacher of another run on the same dataset, a seed "
        "(1, 2, ...) sets components apart that have the same settings, and weight, which all components have or none, gives the weights "
        "in place of validation; weight 0 where others have none is for a component that only shows a later one its temperature",
    )
    ensemble_rank: int = setting(512, "columns of an ensemble's vectors at most: those with the closest scores; read by ensemble", ge=1)
    options: dict[str, Any] = setting({}, "settings that a teacher of your own reads")
    train: OptimizerConfig = OptimizerConfig()
    linear: LinearConfig = LinearConfig()
    vectors: VectorsConfig = VectorsConfig()

    def __post_init__(self) -> None:
        check_bounds(self, "teacher")
        check_balance("teacher", self.user_balance, "teacher", self.examples)
        check_start("teacher", self.start, self.start_user_exponent, self.start_item_exponent)
        if self.loss not in TEACHERS.get(self.kind).losses:
            raise InputError(
                f"teacher.loss={self.loss}: the {self.kind} teacher trains with {' or '.join(TEACHERS.get(self.kind).losses)}; set that, "
                "or another teacher.kind"
            )
        if self.vectors != VectorsConfig() and not TEACHERS.get(self.kind).is_imported:
            given = [f"teacher.vectors.{name}={value}" for name, value in as_dict(self.vectors).items() if value]
            raise InputError(f"{', '.join(given)} is not read by teacher.kind={self.kind}; set teacher.kind=vectors, or leave it out")
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
