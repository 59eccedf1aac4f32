"""The tree of settings of a run, and what settings of different sections exclude.

The sections themselves lie beside the code that reads them. `jobs/settings.py` fills the tree from recipes and the command line.
"""

from dataclasses import dataclass, replace

from ..core.config import DistillationConfig, EvaluationConfig, SamplingConfig, StudentConfig, TeacherConfig, check_balance
from ..core.errors import InputError
from ..core.linear.base import LinearTeacher
from ..core.objectives import candidate_policy
from ..core.storage import same_place
from ..core.students import LayeredStudent, check_start_from_histories, student_kind
from ..core.teacher import Teacher, WholeTeacher, teacher_kind
from ..core.teacher.ensemble import EnsembleTeacher, component_configs, in_part, parts_of
from ..core.teacher.model import PromptTeacher
from ..core.teacher.vectors import VectorsTeacher
from ..distributed.config import ClusterConfig, LabelConfig
from ..graph_store.config import GraphConfig, SourceConfig
from .sections import ExportConfig, RecommendConfig, RunConfig, TuneConfig


@dataclass(frozen=True)
class Settings:
    """All settings of a run: what to learn is in the sections from source to evaluation, where to run in graph and cluster.

    Raises:
        InputError: settings of different sections exclude each other; the message names them and what to change.
    """

    run: RunConfig = RunConfig()
    source: SourceConfig = SourceConfig()
    teacher: TeacherConfig = TeacherConfig()
    sampling: SamplingConfig = SamplingConfig()
    labels: LabelConfig = LabelConfig()
    student: StudentConfig = StudentConfig()
    distill: DistillationConfig = DistillationConfig()
    evaluation: EvaluationConfig = EvaluationConfig()
    export: ExportConfig = ExportConfig()
    recommend: RecommendConfig = RecommendConfig()
    graph: GraphConfig = GraphConfig()
    cluster: ClusterConfig = ClusterConfig()
    tune: TuneConfig = TuneConfig()

    def __post_init__(self) -> None:
        distill, student = self.distill, self.student
        if distill.use_teacher and distill.tunes_prompt and not self.teacher.prompt:
            raise InputError(
                f"distill.regime={distill.regime}, distill.rounds={distill.rounds}: there is no prompt to tune with teacher.prompt=false; "
                "set distill.regime=rounds and distill.rounds=1, or keep the prompt"
            )
        self._check_own_kinds()
        _check_linear(self.teacher)
        self._check_baseline()
        self._check_training()
        needs_full, needs_sampled = self.why_full_engine, self.needs_sampled_engine
        if needs_full is not None and (self.cluster.engine == "sampled" or needs_sampled is not None):
            back = "" if needs_sampled is None else f" (without {needs_sampled})"
            raise InputError(
                f"{needs_full}: set cluster.engine=full{back}, or distill.regime=rounds, distill.num_student=0 and a "
                "student.kind that both engines train: lightgcn, mf, gcn, or your own subclass of core.students.LayeredStudent"
            )
        if self.cluster.engine == "full" and needs_sampled is not None:
            raise InputError(
                f"{needs_sampled} has no meaning with cluster.engine=full, which propagates over the whole graph in every step; set "
                "cluster.engine=sampled, or leave it out"
            )
        if distill.regime == "inline" and self.labels.mode == "streamed":
            raise InputError("labels.mode=streamed has no meaning with distill.regime=inline: labels are made in the student's worker")
        if self.labels.by == "users":
            self._check_user_labels()
        if self.labels.run is not None and self.run.dir is not None and same_place(self.labels.run, self.run.dir):
            raise InputError(f"labels.run={self.labels.run} is this run's own folder; name another one, or leave labels.run out")
        if self.labels.run is not None and (not distill.use_teacher or distill.tunes_prompt):
            raise InputError(
                f"labels.run={self.labels.run} names a teacher whose prompt and labels stay as they are; set distill.use_teacher=true, "
                "distill.regime=rounds and distill.rounds=1, or leave labels.run out"
            )
        check_balance("distill", distill.user_balance, "student", student.examples)
        if not distill.use_teacher and not student.bpr_weight:
            raise InputError(
                "student.bpr_weight=0 and distill.use_teacher=false leave nothing to learn from; set student.bpr_weight, or distil from a "
                "teacher"
            )
        if distill.use_teacher and any(_scores_histories(part) for part in parts_of(self.teacher).values()):
            check_start_from_histories(student, self.cluster.engine)
        if not distill.use_teacher and student.starts_from_teacher:
            raise InputError(
                "student.warm_start and student.kind=mlp start from a teacher, and distill.use_teacher=false trains without one"
            )

    def _check_own_kinds(self) -> None:
        """Refuses classes of the user's own that declare an engine which could not train them."""
        student = student_kind(self.student)
        if not {*student.engines} & {"full", "sampled"}:
            raise InputError(
                f"student.kind={self.student.kind}: no engine trains it; its engines have to be some of full and sampled, as those of a "
                "subclass of core.students.LayeredStudent"
            )
        if "sampled" in student.engines and not (issubclass(student, LayeredStudent) and student.learns_rows):
            raise InputError(
                f"student.kind={self.student.kind} has engines={student.engines}, and the sampled engine trains subclasses of "
                "core.students.LayeredStudent that learn their rows; make it one, or set its engines to ('full',)"
            )
        if "full" not in student.engines:
            raise InputError(f"student.kind={self.student.kind} has engines={student.engines}; it has to have 'full' among them")
        _check_own_teacher(self.teacher.kind, teacher_kind(self.teacher))
        for name, config in parts_of(self.teacher).items():
            with in_part(self.teacher, name):
                _check_own_teacher(config.kind, teacher_kind(config))
        policy = candidate_policy(self.distill)
        if policy.num_candidates < 1 or policy.depth < 0:
            raise InputError(
                f"distill.candidates={self.distill.candidates}: num_candidates={policy.num_candidates}, depth={policy.depth}; make them at "
                "least 1 and at least 0"
            )

    def _check_user_labels(self) -> None:
        """Refuses labels by user where lists cannot be drawn from them."""
        if self.distill.regime == "inline":
            raise InputError("labels.by=users has no meaning with distill.regime=inline: labels are made in the student's worker")
        if not candidate_policy(self.distill).draws_stored:
            raise InputError(
                f"labels.by=users: distill.candidates={self.distill.candidates} does not draw from what users' labels keep (draws_stored); "
                "set labels.by=examples"
            )

    def _check_baseline(self) -> None:
        """Refuses what only the method's own teacher has, where teacher.kind names another one."""
        teacher, cluster, distill = self.teacher, self.cluster, self.distill
        if not teacher.is_baseline:
            return
        kind, sampled, why = f"teacher.kind={teacher.kind}", self.needs_sampled_engine, teacher_kind(teacher).why_full(teacher)
        if why is not None and (cluster.engine == "sampled" or sampled is not None):
            other = "another component" if teacher_kind(teacher).is_ensemble else "teacher.kind=promptmm"
            raise InputError(
                f"{why}, and not with {sampled or 'cluster.engine=sampled'}; set cluster.engine=full"
                f"{f' and leave {sampled} out' if sampled else ''}, or {other}"
            )
        if distill.use_teacher and distill.tunes_prompt:
            raise InputError(
                f"{kind} has no prompt to tune with distill.regime={distill.regime}, distill.rounds={distill.rounds}; set "
                "distill.regime=rounds and distill.rounds=1, or teacher.kind=promptmm"
            )

    def _check_training(self) -> None:
        """Refuses ways to train reduction towers and to take steps that fit nothing which the teacher trains, or not as it is set.

        Of an ensemble `teacher.hidden` and `teacher.reduction_dtype` are what its components have by default, whether they read it or not.
        """
        teacher, cluster, parts = self.teacher, self.cluster, parts_of(self.teacher)
        is_ensemble = teacher_kind(teacher).is_ensemble
        for name, part in parts.items():
            where = f"teacher.components.{name}" if is_ensemble else "teacher"
            if part.reduction_dtype == "bfloat16" and not cluster.zero_stage and teacher_kind(part).has_towers:
                raise InputError(
                    f"{where}.reduction_dtype=bfloat16 keeps float32 masters in ZeRO's sharded optimizer; set cluster.zero_stage=1, 2 "
                    f"or 3, or {where}.reduction_dtype=float32"
                )
            if cluster.micro_batches > part.train.batch_size and teacher_kind(part).takes_steps():
                raise InputError(
                    f"cluster.micro_batches={cluster.micro_batches} is more than {where}.train.batch_size={part.train.batch_size}; "
                    "cut the batch into fewer shares"
                )
        if cluster.micro_batches > 1 and not any(teacher_kind(part).takes_steps() for part in parts.values()):
            what = "none of whose components is trained in steps" if is_ensemble else "which is not trained in steps"
            raise InputError(
                f"cluster.micro_batches={cluster.micro_batches} has no meaning with teacher.kind={teacher.kind}, {what}; leave it out"
            )
        towers = [part for part in parts.values() if teacher_kind(part).has_towers]
        if not towers:
            of_towers = {
                f"teacher.hidden={teacher.hidden}": bool(teacher.hidden) and not is_ensemble,
                f"teacher.reduction_dtype={teacher.reduction_dtype}": teacher.reduction_dtype != "float32" and not is_ensemble,
                f"cluster.zero_stage={cluster.zero_stage}": cluster.zero_stage > 0,  # offloading needs a stage, and so falls with it
                "cluster.checkpoint_activations=true": cluster.checkpoint_activations,
            }
            other = "name promptmm among its components" if is_ensemble else "set teacher.kind=promptmm"
            for name in (name for name, is_set in of_towers.items() if is_set):
                raise InputError(
                    f"teacher.kind={teacher.kind} has no reduction towers for {name}; leave {name.split('=')[0]} at its default, or {other}"
                )
        elif cluster.checkpoint_activations and not any(part.hidden for part in towers):
            raise InputError(
                "cluster.checkpoint_activations=true: a single linear layer has no hidden layers to compute again; set teacher.hidden, or "
                "cluster.checkpoint_activations=false"
            )

    def with_teacher(self, teacher: TeacherConfig) -> "Settings":
        """Returns the settings with another teacher, such as a component by itself or an ensemble of fewer components.

        What nothing of it reads of towers and of steps is at its default, where it would be refused.
        """
        cluster, parts = self.cluster, parts_of(teacher).values()
        towers = [part for part in parts if teacher_kind(part).has_towers]
        if not towers:
            cluster = replace(cluster, zero_stage=0, offload_optimizer=False, offload_parameters=False)
            if not teacher_kind(teacher).is_ensemble:
                teacher = replace(teacher, hidden=[], reduction_dtype="float32")
        if not any(part.hidden for part in towers):
            cluster = replace(cluster, checkpoint_activations=False)
        if not any(teacher_kind(part).takes_steps() for part in parts):
            cluster = replace(cluster, micro_batches=1)
        return replace(self, teacher=teacher, cluster=cluster)

    @property
    def needs_full_engine(self) -> str | None:
        """A setting that only the full engine can do, as `name=value`; None where there is none."""
        distill, student = self.distill, self.student
        if teacher_kind(self.teacher).why_full(self.teacher) is not None:
            return f"teacher.kind={self.teacher.kind}"
        if distill.has_resident_teacher:
            return f"distill.regime={distill.regime}: prompt-tuning beside the student"
        if distill.use_teacher and distill.num_student:
            return f"distill.num_student={distill.num_student}"
        if "sampled" not in student_kind(student).engines:
            return f"student.kind={student.kind}"
        return None

    @property
    def why_full_engine(self) -> str | None:
        """`needs_full_engine`, and why, as a sentence without its end."""
        needed = self.needs_full_engine
        if needed is None:
            return None
        teacher = teacher_kind(self.teacher)
        if needed == f"teacher.kind={self.teacher.kind}" and "sampled" in teacher.engines:
            return teacher.why_full(self.teacher)
        if needed.startswith("distill.num_student"):
            return f"{needed} ranks all items for every user anew in every epoch, from whole tables"
        of_student = needed == f"student.kind={self.student.kind}" and student_kind(self.student).learns_rows
        return f"{needed} is trained by the full engine alone" if of_student else f"{needed} keeps the teacher whole in every worker"

    @property
    def needs_sampled_engine(self) -> str | None:
        """A setting that only the sampled engine can do, as `name=value`; None where there is none."""
        if self.sampling.exclude_seed_edges:
            return "sampling.exclude_seed_edges=true"
        return f"cluster.micro_batches={self.cluster.micro_batches}" if self.cluster.micro_batches > 1 else None

    @property
    def teacher_dir(self) -> str:
        """The folder of the run whose teacher and labels the student learns from: this run's, or that of `labels.run`."""
        return self.dir if self.labels.run is None else self.labels.run.rstrip("/")

    @property
    def dir(self) -> str:
        """The run's folder or URL, without a slash at the end."""
        assert self.run.dir is not None
        return self.run.dir.rstrip("/")


def _check_linear(teacher: TeacherConfig) -> None:
    """Refuses settings of linear models that a teacher's kind does not read, or that have no meaning together; of an ensemble those of
    each component."""
    kind = teacher_kind(teacher)
    reads = kind.linear_settings()
    for name, value in teacher.linear.changed().items():
        if name not in reads:
            known = f"it reads {', '.join(reads)}" if reads else "it is no linear model and reads none of them"
            raise InputError(f"teacher.linear.{name}={value} is not read by teacher.kind={teacher.kind}: {known}; leave it out")
    if issubclass(kind, LinearTeacher):
        kind.check_settings(teacher.linear)
    if kind.is_ensemble:
        for name, component in component_configs(teacher).items():
            with in_part(teacher, name):
                _check_linear(component)


def _scores_histories(teacher: TeacherConfig) -> bool:
    """Whether a teacher's scores, or a part of them, are sums of item similarities that no vectors hold."""
    kind = teacher_kind(teacher)
    return issubclass(kind, LinearTeacher) and kind.scores_histories(teacher.linear)


def _check_own_teacher(kind: str, teacher: type[Teacher]) -> None:
    """Refuses a class of a teacher that declares what its base class cannot do."""
    claims, samples = teacher.has_towers or teacher.has_prompt, "sampled" in teacher.engines
    if issubclass(teacher, WholeTeacher) and (claims or samples or not teacher.takes_steps()):
        raise InputError(
            f"teacher.kind={kind}: a core.teacher.WholeTeacher has no towers and no prompt, and is trained by the full "
            "engine alone; leave has_towers, has_prompt, is_fitted, is_imported and engines as the base class has them"
        )
    over_shards = any("fit_blocks" in vars(each) for each in teacher.__mro__ if each is not LinearTeacher)
    if issubclass(teacher, LinearTeacher) and (claims or not teacher.is_fitted or (samples and not over_shards)):
        raise InputError(
            f"teacher.kind={kind}: a core.linear.base.LinearTeacher has no towers and no prompt, and is fitted in the "
            "full engine alone unless it has fit_blocks; leave has_towers, has_prompt, is_fitted and engines as the base class has them"
        )
    if not issubclass(teacher, WholeTeacher | PromptTeacher | LinearTeacher | EnsembleTeacher | VectorsTeacher):
        raise InputError(
            f"teacher.kind={kind}: no engine trains it; the full engine trains subclasses of core.teacher.WholeTeacher, "
            "and fits those of core.linear.base.LinearTeacher"
        )
