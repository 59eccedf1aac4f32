"""The search of `tune`: question by question from the settings that the catalog's facts give, on validation alone."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from typing import Any

from ...core.artifact import read_manifest
from ...core.config import as_dict
from ...core.errors import InputError
from ...core.storage import JsonObject, join
from ...core.teacher import teacher_kind
from ...core.teacher.ensemble import artifact_of, component_configs
from ..inspection.advice import Advice
from ..settings import Settings
from .questions import Question, differs, student_questions, teacher_questions, trained_part
from .trials import Trial, Trials, changed, flat

TEACHER_SHARE = 0.7  # of the budget, for the teacher; the student's trials are short
TOGETHER = 3  # further trained components that the last trial of the teacher adds
LEAST_WEIGHT = 0.05  # of a further component that the recipe keeps: each has to be trained again


@dataclass
class Found:
    """What the search has found so far.

    Attributes:
        settings: The best settings.
        trial: The trial that had them.
        advice: The settings that differ from those that it began with, with the reasons.
    """

    settings: Settings
    trial: Trial
    advice: list[Advice] = field(default_factory=list)

    @property
    def value(self) -> float:
        """The best validation metric; minus infinity where no trial has one."""
        return self.trial.value if self.trial.value is not None else -float("inf")


def search_settings(trials: Trials, budget: float) -> tuple[Found, Found]:
    """Searches settings of teacher and student; returns what it found for either.

    Args:
        trials: Runs the trials.
        budget: Seconds of all trials together; the first trial of teacher and student begins in any case.

    Raises:
        InputError: no trial could be trained.
    """
    teacher = _tune_teacher(trials, TEACHER_SHARE * budget)
    start = trials.run("student", "student", teacher.settings, teacher.trial)
    if start.value is None:
        raise InputError("tune: the student of the first trial could not be trained with these settings; see the message above")
    student = Found(teacher.settings, start)
    for question in _asked(student_questions, lambda: student.settings):
        _answer(trials, student, question, "student", budget, lambda settings, name: trials.run(name, "student", settings, teacher.trial))
    return teacher, student


def _tune_teacher(trials: Trials, limit: float) -> Found:
    """Searches the teacher's settings: components that are fitted without steps are fitted once, and read by all other trials."""
    first = trials.run("teacher", "teacher", trials.settings)
    if first.value is None:
        raise InputError("tune: the teacher of the first trial could not be trained with these settings; see the message above")
    found = Found(trials.settings, first)
    fitted = _fitted(trials, first)

    def run(settings: Settings, name: str) -> Trial:
        trial = trials.run(name, "teacher", _with_components(settings, fitted))
        return replace(trial, settings=settings)

    for question in _asked(teacher_questions, lambda: found.settings):
        _answer(trials, found, question, "teacher", limit, run)
    return _together(trials, found, fitted)


def _asked(questions: Callable[[Settings], Iterator[Question]], settings: Callable[[], Settings]) -> Iterator[Question]:
    """Yields every question once, each as it is for the settings that are best when it is asked."""
    asked: set[str] = set()
    while True:
        question = next((each for each in questions(settings()) if each.about not in asked), None)
        if question is None:
            return
        asked.add(question.about)
        yield question


def _answer(trials: Trials, found: Found, question: Question, stage: str, limit: float, run: Callable[[Settings, str], Trial]) -> None:
    """Tries the alternatives of a question, and takes over the best of them where it is better than what there was."""
    before = found.value
    for changes in question.alternatives:
        if not differs(changes, flat(as_dict(found.settings))) or not trials.fits(stage, limit):
            continue
        name = _name_of(stage, question, changes)
        try:
            settings = changed(found.settings, changes)
        except InputError as error:
            print(f"[tune] {name}: left out: {error}", flush=True)
            continue
        trial = run(settings, name)
        if trial.value is not None and trial.value > found.value:
            because = f"{question.about}: validation {trials.metric} {trial.value:.4f} in place of {before:.4f}"
            kept = [one for one in found.advice if one.setting not in changes]
            found.settings, found.trial = settings, trial
            found.advice = [*kept, *(Advice(setting, value, because) for setting, value in changes.items())]


def _fitted(trials: Trials, first: Trial) -> dict[str, dict[str, Any]]:
    """Returns the components of the first trial that later ones read as artifacts: those that are fitted without steps."""
    teacher = first.settings.teacher
    if not teacher_kind(teacher).is_ensemble:
        return {}
    folder = join(trials.url(first.name), "components")
    fitted = {name for name, config in component_configs(teacher).items() if teacher_kind(config).is_fitted}
    taken = {name: own for name, own in teacher.components.items() if artifact_of(own) is not None}
    return {**{name: {"artifact": join(folder, name, "teacher")} for name in fitted}, **taken}


def _with_components(settings: Settings, fitted: dict[str, dict[str, Any]], further: dict[str, dict[str, Any]] | None = None) -> Settings:
    """Returns settings whose fitted components are read and not fitted again, with further components."""
    components = {name: fitted.get(name, own) for name, own in settings.teacher.components.items()}
    return replace(settings, teacher=replace(settings.teacher, components={**components, **(further or {})}))


def _together(trials: Trials, found: Found, fitted: dict[str, dict[str, Any]]) -> Found:
    """Adds up the trained components of several trials, which costs no training, and keeps those that get a weight."""
    if not teacher_kind(found.settings.teacher).is_ensemble:
        return found
    part = trained_part(found.settings.teacher)
    others = [trial for trial in trials.finished.values() if trial.value is not None and trial.name != found.trial.name]
    others = sorted(others, key=lambda trial: -(trial.value or 0.0))[:TOGETHER]
    if part is None or not others:
        return found
    own = part[0]
    best = {"artifact": join(trials.url(found.trial.name), "components", own, "teacher")}
    further = {f"{own}-{n + 2}": {"artifact": join(trials.url(t.name), "components", own, "teacher")} for n, t in enumerate(others)}
    trial = trials.run("together", "teacher", _with_components(found.settings, {**fitted, own: best}, further))
    if trial.value is None or trial.value <= found.value:
        return found
    weights = read_manifest(join(trials.url(trial.name), "teacher"), "teacher")["components"]
    kept = {name: t for name, t in zip(further, others) if weights[name]["weight"] >= LEAST_WEIGHT}
    if not kept:
        return found
    components = {**found.settings.teacher.components, **{name: _difference(t.settings, found.settings, own) for name, t in kept.items()}}
    because = f"{len(kept) + 1} trained teachers together: validation {trials.metric} {trial.value:.4f} in place of {found.value:.4f}"
    settings = changed(found.settings, {"teacher.components": components})
    return Found(settings, trial, [*found.advice, Advice("teacher.components", components, because)])


def _difference(settings: Settings, base: Settings, name: str) -> JsonObject:
    """Returns a component's settings over a section `teacher`: those of the component `name` of other settings that differ."""
    of_component, of_base = (as_dict(component_configs(each.teacher)[name]) for each in (settings, base))
    differing: JsonObject = {"kind": of_component["kind"]}
    for key, value in of_component.items():
        if key == "train":
            train = {inner: each for inner, each in value.items() if each != of_base["train"][inner]}
            differing |= {"train": train} if train else {}
        elif key not in ("kind", "components", "linear") and value != of_base[key]:
            differing[key] = value
    return differing


def _name_of(stage: str, question: Question, changes: JsonObject) -> str:
    """Names a trial after the setting that it changes first."""
    setting, value = next(iter(changes.items()))
    return f"{stage}-{setting.split('.', 1)[1]}-{value}".replace(" ", "")
