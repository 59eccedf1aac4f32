"""The settings tree of the command line: recipes (YAML) and dotted overrides, checked before any work starts."""

import dataclasses
import difflib
import types
import typing
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any, TypeVar

from ..core.config import DistillationConfig, EvaluationConfig, SamplingConfig, StudentConfig, TeacherConfig
from ..core.errors import InputError
from ..core.settings import check_bounds, setting
from ..core.storage import is_local, local_path
from ..distributed.config import ClusterConfig, LabelConfig
from ..graph_store.config import GraphConfig, SourceConfig

T = TypeVar("T")
VERBS = ("prepare", "partition", "plan", "train-teacher", "label", "distill", "evaluate", "export", "recommend")


@dataclass(frozen=True)
class RunConfig:
    """One run; section `run`."""

    dir: str | None = setting(None, "folder or URL that holds everything the run makes; not set: runs/<recipe>")
    seed: int = setting(0, "seed of initial weights, order, negatives, candidates and dropout", ge=0)
    redo: str | None = setting(None, "verb to do again, with all after it; their results are removed first", choices=VERBS)

    def __post_init__(self) -> None:
        check_bounds(self, "run")


@dataclass(frozen=True)
class RecommendConfig:
    """What `recommend` answers; section `recommend`."""

    __pydantic_config__: typing.ClassVar[dict] = {"coerce_numbers_to_str": True}  # YAML reads the ids of recommend.users=[0, 17] as numbers

    users: list[str] | None = setting(None, "raw user ids; not set: all with recommend.output, else the first user with train items")
    k: int = setting(10, "items a list", ge=1)
    exclude_seen: bool = setting(True, "leave out the user's train items")
    output: str | None = setting(None, "URL of a Parquet file for the lists; not set: they are printed")

    def __post_init__(self) -> None:
        check_bounds(self, "recommend")


@dataclass(frozen=True)
class Settings:
    """Everything a run can be told. What to learn: source to evaluation; where to run: graph and cluster."""

    run: RunConfig = RunConfig()
    source: SourceConfig = SourceConfig()
    teacher: TeacherConfig = TeacherConfig()
    sampling: SamplingConfig = SamplingConfig()
    labels: LabelConfig = LabelConfig()
    student: StudentConfig = StudentConfig()
    distill: DistillationConfig = DistillationConfig()
    evaluation: EvaluationConfig = EvaluationConfig()
    recommend: RecommendConfig = RecommendConfig()
    graph: GraphConfig = GraphConfig()
    cluster: ClusterConfig = ClusterConfig()

    def __post_init__(self) -> None:
        distill, student = self.distill, self.student
        tunes = distill.regime == "inline" or distill.rounds > 1
        if distill.use_teacher and tunes and not self.teacher.prompt:
            raise InputError(
                f"distill.regime={distill.regime}, distill.rounds={distill.rounds}: there is no prompt to tune with teacher.prompt=false; "
                "set distill.regime=rounds and distill.rounds=1, or keep the prompt"
            )
        self._check_baseline()
        self._check_towers()
        needs_full, needs_sampled = self.needs_full_engine, self.needs_sampled_engine
        if needs_full is not None and (self.cluster.engine == "sampled" or needs_sampled is not None):
            back = "" if needs_sampled is None else f" (without {needs_sampled})"
            raise InputError(
                f"{needs_full} keeps the teacher whole in every worker: set cluster.engine=full{back}, or distill.regime=rounds, "
                "distill.rounds=1 and another student.kind than mlp"
            )
        if self.cluster.engine == "full" and needs_sampled is not None:
            raise InputError(
                f"{needs_sampled} has no meaning with cluster.engine=full, which propagates over the whole graph in every step; set "
                "cluster.engine=sampled, or leave it out"
            )
        if distill.regime == "inline" and self.labels.mode == "streamed":
            raise InputError("labels.mode=streamed has no meaning with distill.regime=inline: labels are made in the student's worker")
        if not distill.use_teacher and (student.warm_start or student.kind == "mlp"):
            raise InputError(
                "student.warm_start and student.kind=mlp start from a teacher, and distill.use_teacher=false trains without one"
            )

    def _check_baseline(self) -> None:
        """What only the method's own teacher has, where another kind is asked for."""
        teacher, cluster, distill = self.teacher, self.cluster, self.distill
        if not teacher.is_baseline:
            return
        kind, sampled = f"teacher.kind={teacher.kind}", self.needs_sampled_engine
        if cluster.engine == "sampled" or sampled is not None:
            raise InputError(
                f"{kind} is trained by the full engine alone, and not with {sampled or 'cluster.engine=sampled'}; set cluster.engine=full"
                f"{f' and leave {sampled} out' if sampled else ''}, or teacher.kind=promptmm"
            )
        if distill.use_teacher and (distill.regime == "inline" or distill.rounds > 1):
            raise InputError(
                f"{kind} has no prompt to tune with distill.regime={distill.regime}, distill.rounds={distill.rounds}; set "
                "distill.regime=rounds and distill.rounds=1, or teacher.kind=promptmm"
            )
        of_towers = {
            f"teacher.hidden={teacher.hidden}": bool(teacher.hidden),
            f"teacher.reduction_dtype={teacher.reduction_dtype}": teacher.reduction_dtype != "float32",
            f"cluster.zero_stage={cluster.zero_stage}": cluster.zero_stage > 0,  # offloading needs a stage, and so falls with it
            "cluster.checkpoint_activations=true": cluster.checkpoint_activations,
        }
        for name, is_set in of_towers.items():
            if is_set:
                raise InputError(
                    f"{kind} has no reduction towers for {name}; leave {name.split('=')[0]} at its default, or set teacher.kind=promptmm"
                )

    def _check_towers(self) -> None:
        """How the teacher's towers are trained, against what they are."""
        teacher, cluster = self.teacher, self.cluster
        if teacher.reduction_dtype == "bfloat16" and not cluster.zero_stage:
            raise InputError(
                "teacher.reduction_dtype=bfloat16 keeps float32 masters in ZeRO's sharded optimizer; set cluster.zero_stage=1, 2 or 3, "
                "or teacher.reduction_dtype=float32"
            )
        if cluster.checkpoint_activations and not teacher.hidden:
            raise InputError(
                "cluster.checkpoint_activations=true: a single linear layer has no hidden layers to compute again; set teacher.hidden, or "
                "cluster.checkpoint_activations=false"
            )
        if cluster.micro_batches > teacher.train.batch_size:
            raise InputError(
                f"cluster.micro_batches={cluster.micro_batches} is more than teacher.train.batch_size={teacher.train.batch_size}; "
                "cut the batch into fewer shares"
            )

    @property
    def needs_full_engine(self) -> str | None:
        """The setting that only the full engine can do, None where there is none."""
        distill, student = self.distill, self.student
        if self.teacher.is_baseline:
            return f"teacher.kind={self.teacher.kind}"
        if distill.use_teacher and (distill.regime == "inline" or distill.rounds > 1):
            return f"distill.regime={distill.regime}, distill.rounds={distill.rounds}: prompt-tuning beside the student"
        if student.kind == "mlp":
            return "student.kind=mlp"
        return None

    @property
    def needs_sampled_engine(self) -> str | None:
        """The setting that only the sampled engine can do, None where there is none."""
        if self.sampling.exclude_seed_edges:
            return "sampling.exclude_seed_edges=true"
        return f"cluster.micro_batches={self.cluster.micro_batches}" if self.cluster.micro_batches > 1 else None

    @property
    def dir(self) -> str:
        """The run's folder."""
        assert self.run.dir is not None
        return self.run.dir.rstrip("/")


def walk(kind: Any = Settings, prefix: str = "") -> Iterator[tuple[str, dataclasses.Field, Any]]:
    """(dotted name, field, default) of every setting."""
    for field in dataclasses.fields(kind):
        name = f"{prefix}{field.name}"
        if dataclasses.is_dataclass(field.type):
            yield from walk(field.type, f"{name}.")
        else:
            factory = field.default_factory
            yield name, field, field.default if factory is dataclasses.MISSING else factory()


def load_settings(recipe: str | None, overrides: list[str]) -> Settings:
    """Settings from a recipe and `key=value` overrides.

    Args:
        recipe: A YAML file, the name of a shipped recipe, or None for the defaults.
        overrides: `a.b=value`, the value in YAML.

    Raises:
        InputError: an unknown key (with the nearest valid one), a wrong type or a value out of bounds.
    """
    values = read_recipe(recipe) if recipe else {}
    where = recipe or "defaults"
    _check_keys(values, Settings, "", where)
    for override in overrides:
        _set(values, *parse_override(override))
    run = values.setdefault("run", {})
    if run.get("dir") is None:
        run["dir"] = f"runs/{Path(recipe).stem if recipe else 'default'}"
    for section, name in (("run", "dir"), ("cluster", "cache_dir")):  # workers have working directories of their own
        url = values.get(section, {}).get(name)
        if isinstance(url, str) and is_local(url):
            values[section][name] = str(local_path(url))
    return build_settings(values)


def parse_override(override: str) -> tuple[str, Any]:
    """Key and value of `key=value`, the value in YAML."""
    import yaml

    key, sign, text = override.partition("=")
    if not sign:
        raise InputError(f"{override!r}: expected key=value, for instance teacher.train.epochs=20")
    try:
        return key.strip(), yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise InputError(f"{override!r}: the value is not valid YAML ({error})") from error


def build_settings(values: dict) -> Settings:
    """Settings from nested plain values, as in a recipe or a saved configuration."""
    return build(Settings, values)


def build(kind: type[T], values: dict) -> T:
    """A settings class from nested plain values; InputError names what has a wrong type or is out of bounds."""
    import pydantic

    try:
        return pydantic.TypeAdapter(kind).validate_python(values)
    except pydantic.ValidationError as error:
        raise InputError("; ".join(_explain(e) for e in error.errors())) from error


def _explain(error: Any) -> str:
    original = error.get("ctx", {}).get("error")
    if original is not None:
        return str(original)
    name = ".".join(str(part) for part in error["loc"] if part not in ("str", "int", "function-after", "nullable"))
    return f"{name}={error['input']!r}: {error['msg']}"


def read_recipe(recipe: str, package: str = "promptmm.jobs.recipes") -> dict:
    """The values of a YAML file, or of the recipe of that name that the package ships."""
    import yaml

    shipped = {p.name.removesuffix(".yaml"): p for p in resources.files(package).iterdir() if p.name.endswith(".yaml")}
    if Path(recipe).is_file():
        text = Path(recipe).read_text()
    elif recipe in shipped:
        text = shipped[recipe].read_text()
    else:
        raise InputError(f"recipe {recipe!r}: no such file, and no shipped recipe of that name (there are: {', '.join(sorted(shipped))})")
    try:
        values = yaml.safe_load(text) or {}
    except yaml.YAMLError as error:
        raise InputError(f"recipe {recipe}: not valid YAML ({error})") from error
    if not isinstance(values, dict):
        raise InputError(f"recipe {recipe}: expected sections with settings, found {type(values).__name__}")
    return values


def _section(kind: Any, name: str) -> Any:
    field = next((f for f in dataclasses.fields(kind) if f.name == name), None)
    return field.type if field is not None and dataclasses.is_dataclass(field.type) else None


def _check_keys(values: Mapping, kind: Any, prefix: str, where: str) -> None:
    for key, value in values.items():
        section = _section(kind, key)
        if key not in {f.name for f in dataclasses.fields(kind)}:
            raise InputError(f"{where}: unknown setting {prefix}{key}{_nearest(prefix + str(key))}")
        if section is not None:
            if not isinstance(value, Mapping):
                raise InputError(f"{where}: {prefix}{key} is a section; set one of its settings, such as {prefix}{key}.{_first(section)}")
            _check_keys(value, section, f"{prefix}{key}.", where)


def _first(kind: Any) -> str:
    return next(iter(walk(kind)))[0]


def _nearest(name: str) -> str:
    names = [n for n, _, _ in walk()]
    names += sorted({section for n in names for section in _sections_of(n)})
    last = {n.rsplit(".", 1)[-1]: n for n in names}
    close = difflib.get_close_matches(name, names, 1, 0.6)
    close = close or [last[m] for m in difflib.get_close_matches(name.rsplit(".", 1)[-1], list(last), 1, 0.6)]
    return f"; did you mean {close[0]}?" if close else "; `promptmm pipeline --help` lists them"


def _sections_of(name: str) -> list[str]:
    """`a` and `a.b` of `a.b.c`."""
    parts = name.split(".")
    return [".".join(parts[:end]) for end in range(1, len(parts))]


def _set(values: dict, key: str, value: Any) -> None:
    if key not in {name for name, _, _ in walk()}:
        section = [n for n, _, _ in walk() if n.startswith(key + ".")]
        if section:
            raise InputError(f"{key} is a section; set one of its settings, such as {section[0]}=...")
        raise InputError(f"unknown setting {key}{_nearest(key)}")
    *path, last = key.split(".")
    for part in path:
        values = values.setdefault(part, {})
    values[last] = value


def describe(verb: str, without: tuple[str, ...] = ()) -> str:
    """All settings that a verb reads, with type, default and help; some may be left out."""
    wanted = SECTIONS[verb]
    lines = []
    for name, field, default in walk():
        if name.split(".")[0] in wanted and name not in without:
            kind = _type_name(field.type)
            lines.append(f"  {name} ({kind}, default {_plain(default)})\n      {field.metadata['help']}")
    return "\n".join(lines)


def _type_name(kind: Any) -> str:
    if isinstance(kind, types.UnionType) or typing.get_origin(kind) is typing.Union:
        return " or ".join("not set" if a is type(None) else _type_name(a) for a in typing.get_args(kind))
    return kind.__name__ if isinstance(kind, type) and not typing.get_args(kind) else str(kind).replace("typing.", "")


def _plain(value: Any) -> str:
    return "not set" if value is None else str(value).lower() if isinstance(value, bool) else str(value)


SECTIONS: dict[str, tuple[str, ...]] = {
    "generate": ("source",),
    "prepare": ("run", "source", "evaluation"),
    "partition": ("run", "graph", "cluster"),
    "plan": ("run", "teacher", "sampling", "student", "distill", "labels", "graph", "cluster"),
    "train-teacher": ("run", "teacher", "sampling", "evaluation", "cluster"),
    "label": ("run", "labels", "distill", "student", "cluster"),
    "distill": ("run", "student", "distill", "labels", "sampling", "evaluation", "cluster"),
    "evaluate": ("run", "evaluation", "cluster"),
    "export": ("run", "cluster"),
    "recommend": ("run", "recommend", "cluster"),
    "experiment": ("run", "source", "teacher", "student", "distill", "labels", "evaluation", "cluster"),
    "pipeline": tuple(f.name for f in dataclasses.fields(Settings)),
}
