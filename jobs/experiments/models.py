"""The models of an experiment: those of its recipe, its ablations and the points of its sweeps, each with the settings it changes."""

import re
from dataclasses import dataclass

from ...core.config import as_dict
from ...core.errors import InputError
from ...core.kinds import TEACHERS
from ...core.linear.config import LinearConfig
from ...core.storage import JsonObject, join
from ..runs.lineage import distillation_settings
from ..settings import Settings
from .config import ModelConfig
from .settings import Recipe

READS = {"teacher": ("teacher.",), "student": ("student.", "distill.", "labels.")}
# Settings that came after the first recorded experiments, with their defaults.
LATER_SETTINGS: JsonObject = {
    "options": {}, "losses": {}, "candidates": "mixed", "metrics": [], "linear": as_dict(LinearConfig()), "start_user_exponent": 0.5,
    "start_item_exponent": 0.5,
}  # fmt: skip
Choices = dict[str, JsonObject]


@dataclass(frozen=True)
class Model:
    """A model of an experiment.

    Attributes:
        name: Unique; also of its folder.
        stage: "teacher" or "student".
        role: "model", "ablation", "sweep", or "support" for the teacher of an ablated or swept student.
        teacher: Model that a student learns from.
        of: Model whose settings it starts from.
        changes: Dotted settings over them.
        point: Of a sweep: its name and the setting's value.
    """

    name: str
    stage: str
    role: str
    teacher: str | None
    of: str | None
    changes: JsonObject
    point: tuple[str, object] | None = None

    @property
    def folder(self) -> str:
        """Name of its folder below cells/."""
        return folder_of(self.name)


def folder_of(name: str) -> str:
    """Turns a name into the name of a folder."""
    return re.sub(r"[^\w.=+-]+", "-", name).strip("-")


@dataclass(frozen=True)
class Models:
    """All models of an experiment by name, in the recipe's order.

    Attributes:
        recipe: The recipe.
        by_name: The models.
    """

    recipe: Recipe
    by_name: dict[str, Model]

    def __getitem__(self, name: str) -> Model:
        return self.by_name[name]

    def of_role(self, *roles: str) -> list[Model]:
        """Lists the models of some roles, in order."""
        return [model for model in self.by_name.values() if model.role in roles]

    def changes(self, name: str, choices: Choices) -> JsonObject:
        """Collects a model's dotted settings over the base: of what it starts from, its own, and what a search chose for it.

        Args:
            choices: Settings that searches chose, by model.
        """
        model = self.by_name[name]
        start = self.changes(model.of, choices) if model.of else {}
        own = {**start, **model.changes, **choices.get(name, {})}
        taught = self.changes(model.teacher, choices) if model.teacher else {}
        return {**{key: value for key, value in taught.items() if key.startswith("teacher.")}, **own}

    def settings(self, name: str, seed: int, choices: Choices, url: str | None = None, more: JsonObject | None = None) -> Settings:
        """Builds the settings of a cell.

        Args:
            name, seed: Of the cell.
            choices: Settings that searches chose, by model.
            url: Its folder; None: below cells/.
            more: Dotted settings over all others.

        Raises:
            InputError: they exclude each other; the message names the model.
        """
        try:
            return self.recipe.settings(url or self.cell_url(name, seed), seed, {**self.changes(name, choices), **(more or {})})
        except InputError as error:
            raise InputError(f"{self.recipe.title}: model {name!r}: {error}") from error

    def cell_url(self, name: str, seed: int) -> str:
        """Names the folder of a cell."""
        return join(self.recipe.base.dir, "cells", self.by_name[name].folder, f"seed-{seed}")

    def teacher_of(self, name: str, settings: Settings) -> str | None:
        """Names the model that a cell learns from; None for a teacher, and for a student that is trained alone."""
        model = self.by_name[name]
        return model.teacher if model.stage == "student" and settings.distill.use_teacher else None


def what_decides(stage: str, settings: Settings) -> JsonObject:
    """Everything of the settings that decides a cell's result but for its seed, as JSON-able values."""
    evaluation = {
        "cutoffs": settings.evaluation.cutoffs,
        "select_by": settings.evaluation.select_by,
        "metrics": settings.evaluation.metrics,
    }
    if stage == "teacher":
        teacher = as_dict(settings.teacher)
        if not TEACHERS.get(settings.teacher.kind).is_ensemble:
            teacher["components"] = {}  # another kind does not read them, so that a change leaves its cells as they are
        sections = {"teacher": teacher, "evaluation": evaluation}
    else:
        sections = {**distillation_settings(settings, settings.distill.use_teacher), "evaluation": evaluation}
    return {name: _as_recorded(section) for name, section in sections.items()}


def _as_recorded(section: JsonObject | None) -> JsonObject | None:
    """A section without the settings that cells were first recorded without, where these have their defaults: digests stay as they were."""
    if section is None:
        return None
    return {name: value for name, value in section.items() if name not in LATER_SETTINGS or value != LATER_SETTINGS[name]}


def expand(recipe: Recipe) -> Models:
    """Lists all models of a recipe, with those that its ablations and sweeps add.

    Raises:
        InputError: a name that stands for nothing, a setting that the model does not read, or settings that exclude each other.
    """
    config = recipe.config
    found = [Model(name, m.stage, "model", m.teacher, None, m.set) for name, m in config.models.items()]
    for name, ablation in config.ablations.items():
        found += _variant(config.models, f"ablations.{name}", name, "ablation", ablation.of, ablation.student, ablation.set)
    for name, sweep in config.sweeps.items():
        if not sweep.setting or not sweep.values:
            raise InputError(f"sweeps.{name}: name a setting and at least one of its values")
        for value in sweep.values:
            where, changes = f"sweeps.{name}", {sweep.setting: value}
            found += _variant(config.models, where, f"{name}={value}", "sweep", sweep.of, sweep.student, changes, (name, value))
    folders = [model.folder for model in found]
    for model in found:
        if folders.count(model.folder) > 1 or not model.folder:
            raise InputError(f"model {model.name!r}: another one has this name, or the same folder {model.folder!r}; give it another name")
    models = Models(recipe, {model.name: model for model in found})
    for model in found:
        _check(models, model)
    _check_names(models)
    return models


def _variant(
    models: dict[str, ModelConfig],
    where: str,
    name: str,
    role: str,
    of: str,
    student: str | None,
    changes: JsonObject,
    point: tuple[str, object] | None = None,
) -> list[Model]:
    """Makes a changed model; or a changed teacher with the student that is trained from it.

    Args:
        models: Those of the recipe.
        where: The entry of the recipe, for messages.
        name, role: Of the changed model.
        of: The model that is changed.
        student: The student model that is trained from a changed teacher, None where there is none.
        changes: Dotted settings.
        point: Of a sweep: its name and the value.
    """
    for other in filter(None, (of, student)):
        if other not in models:
            raise InputError(f"{where}: {other!r} is not one of the models {', '.join(models)}")
    base = models[of]
    if student is None:
        return [Model(name, base.stage, role, base.teacher, of, changes, point)]
    if base.stage != "teacher" or models[student].teacher != of:
        raise InputError(f"{where}: student={student} learns from {models[student].teacher!r}; `of` must be that teacher, found {of!r}")
    taught = {key: value for key, value in changes.items() if key.startswith("teacher.")}
    own = {key: value for key, value in changes.items() if key not in taught}
    teacher = f"{name} (teacher)"
    return [Model(teacher, "teacher", "support", None, of, taught), Model(name, "student", role, teacher, student, own, point)]


def _check(models: Models, model: Model) -> None:
    """Checks a model's keys and teacher, and that its settings go together."""
    teacher = models.by_name.get(model.teacher) if model.teacher else None
    if model.teacher and (teacher is None or teacher.stage != "teacher" or model.stage == "teacher"):
        raise InputError(f"model {model.name!r}: teacher={model.teacher!r} must be a model of stage teacher, for a student")
    _check_reads(model, model.changes)
    settings = models.settings(model.name, models.recipe.config.seeds[0], {})
    if model.stage == "student" and settings.distill.use_teacher and not model.teacher:
        raise InputError(
            f"model {model.name!r}: a student that is distilled needs its teacher; name it (teacher: ...), or set "
            "distill.use_teacher: false"
        )


def _check_reads(model: Model, changes: JsonObject) -> None:
    for key in changes:
        if not key.startswith(READS[model.stage]):
            reads = ", ".join(f"{section}*" for section in READS[model.stage])
            raise InputError(
                f"model {model.name!r}: {key} is not among what a {model.stage} may set ({reads}); what all cells share goes on the "
                "command line or into the base recipe, and a student's teacher is a model of its own"
            )


def _check_names(models: Models) -> None:
    """Checks that searches and comparisons name models, and that searches have the same budget."""
    config = models.recipe.config
    for name, search in config.search.items():
        if name not in models.by_name:
            raise InputError(f"search.{name}: no model of that name; the models are {', '.join(models.by_name)}")
        _check_reads(models[name], search.space)
        if not search.space or not search.seeds:
            raise InputError(f"search.{name}: name at least one setting in space, and one seed")
    budgets = {name: (search.trials, len(search.seeds)) for name, search in config.search.items()}
    if len({*budgets.values()}) > 1:
        found = ", ".join(f"{name}: {trials} trials at {seeds} seeds" for name, (trials, seeds) in budgets.items())
        raise InputError(f"search: models that are compared have the same budget; set the same trials and number of seeds ({found})")
    compared = list(config.compare.references)
    if config.compare.transferability is not None:
        compared += as_dict(config.compare.transferability).values()
    for name in compared:
        if name not in models.by_name:
            raise InputError(f"compare: no model {name!r}; the models are {', '.join(models.by_name)}")
