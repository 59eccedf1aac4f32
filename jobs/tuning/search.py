"""The search of `tune`: question by question from the settings that the catalog's facts give, on validation alone."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from typing import Any

from ...core.artifact import read_manifest
from ...core.config import as_dict
from ...core.errors import InputError
from ...core.storage import JsonObject, join
from ...core.teacher import teacher_kind
from ...core.teacher.ensemble import SEED, artifact_of, component_configs, outside
from ..inspection.advice import Advice
from ..settings import Settings
from .questions import Question, differs, student_questions, teacher_questions, trained_part
from .trials import SURE, Trial, Trials, changed, flat

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

    The first teacher has a student at once. Where that ranks as well as its teacher does, up to a standard error, other settings of the
    student have little to gain, and the whole budget is the teacher's; else the teacher has `TEACHER_SHARE` of it.

    Args:
        trials: Runs the trials.
        budget: Seconds of all trials together; the first trial of teacher and student begins in any case.

    Raises:
        InputError: no trial could be trained.
    """
    first = _first(trials.run("teacher", "teacher", trials.settings))
    student = _first(trials.run("student", "student", first.settings, first))
    behind, error = first.lead(student)
    limit = TEACHER_SHARE * budget
    if behind <= error:
        limit = max(0.0, budget - SURE * student.seconds)  # which the student of a better teacher takes
        print(f"[tune] the student ranks as well as its teacher, up to {error:.4f}: trials of the teacher that fit come first", flush=True)
    teacher = _tune_teacher(trials, first, limit)
    if teacher.trial.digest != first.digest:
        student = _first(trials.run(f"student-of-{teacher.trial.name}", "student", teacher.settings, teacher.trial))
    found = Found(teacher.settings, student)
    for question in _asked(student_questions, lambda: found.settings):
        _answer(trials, found, question, "student", budget, lambda settings, name: trials.run(name, "student", settings, teacher.trial))
    return teacher, found


def _first(trial: Trial) -> Trial:
    """Returns the first trial of a stage, or of a better teacher's students.

    Raises:
        InputError: it could not be trained.
    """
    if trial.value is None:
        raise InputError(f"tune: the trial {trial.name} could not be trained with these settings; see the message above")
    return trial


def _tune_teacher(trials: Trials, first: Trial, limit: float) -> Found:
    """Searches the teacher's settings: all components but the one that the search is about are made once, and read by all other trials."""
    found, made = _with_own_temperature(trials, first), _made(trials, first)

    def run(settings: Settings, name: str) -> Trial:
        trial = trials.run(name, "teacher", _with_components(settings, made))
        return replace(trial, settings=settings)

    for question in _asked(teacher_questions, lambda: found.settings):
        _answer(trials, found, question, "teacher", limit, run)
    return _together(trials, found, made)


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
    """Tries the alternatives of a question, and takes over one that is clearly better than the best there was (see `is_ahead`)."""
    begun, before = found.settings, found.trial
    for changes in question.alternatives:
        if not differs(changes, flat(as_dict(found.settings))) or not trials.fits(stage, limit):
            continue
        name = _name_of(stage, question, changes)
        try:
            settings = changed(found.settings, changes)
        except InputError as error:
            print(f"[tune] {name}: left out: {error}", flush=True)
            continue
        if as_dict(settings) == as_dict(begun):  # what an earlier alternative took the place of
            continue
        trial = run(settings, name)
        if is_ahead(trial, found.trial, trials.metric):
            because = f"{question.about}: {_gain(trial, before, trials.metric)}"
            kept = [one for one in found.advice if one.setting not in changes]
            found.settings, found.trial = settings, trial
            found.advice = [*kept, *(Advice(setting, value, because) for setting, value in changes.items())]


def is_ahead(trial: Trial, best: Trial, metric: str) -> bool:
    """Whether a trial ranks better than another one by more than a standard error of the difference, paired over the users of validation.

    Fewer than one in six of the trials that differ from the best by chance alone are that far ahead. Of a trial that is ahead by less, a
    line says so.

    Source: Breiman, Friedman, Olshen, Stone, "Classification and regression trees" (1984), 3.4.3: the rule of one standard error, by which
    what there was is kept unless something is better by more than the error of the estimate.
    """
    gain, error = trial.lead(best)
    if 0 < gain <= error:
        less = f"its lead of {gain:.4f} in validation {metric} is within the standard error of {error:.4f}, so it is not taken"
        print(f"[tune] {trial.name}: {less}", flush=True)
    return gain > max(0.0, error)


def _gain(trial: Trial, before: Trial, metric: str) -> str:
    """Returns what a trial has gained over one before it, in words."""
    gain, error = trial.lead(before)
    errors = f", standard error {error:.4f}" if error else ""
    return f"validation {metric} {trial.value:.4f} in place of {before.value:.4f} ({gain:+.4f}{errors})"


def _with_own_temperature(trials: Trials, first: Trial) -> Found:
    """Gives the component that the search is about the temperature that it took from another one, as a setting that can be searched.

    Components that were trained for that temperature alone are left out from there on.
    """
    teacher, part = first.settings.teacher, trained_part(first.settings.teacher)
    own = {} if part is None else teacher.components.get(part[0], {})
    if part is None or not teacher_kind(teacher).is_ensemble or own.get("temperature", 0.0) is not None:
        return Found(first.settings, first)
    manifest = read_manifest(join(trials.url(first.name), "components", part[0], "teacher"), "teacher")
    kept = {name: each for name, each in teacher.components.items() if name not in outside(teacher)}
    components = {**kept, part[0]: {key: value for key, value in own.items() if key != "temperature"}}
    changes: JsonObject = {"teacher.components": components, "teacher.temperature": manifest["config"]["temperature"]}
    because = "the temperature of the best component before it, on validation"
    advice = [Advice(setting, value, because) for setting, value in changes.items()]
    return Found(changed(first.settings, changes), first, advice)


def _made(trials: Trials, first: Trial) -> dict[str, dict[str, Any]]:
    """Returns the components of the first trial that later ones read as artifacts: all but the one that the search is about."""
    teacher, part = first.settings.teacher, trained_part(first.settings.teacher)
    if not teacher_kind(teacher).is_ensemble:
        return {}
    folder = join(trials.url(first.name), "components")
    made = [name for name in component_configs(teacher) if part is None or name != part[0]]
    taken = {name: own for name, own in teacher.components.items() if artifact_of(own) is not None}
    return {**{name: {"artifact": join(folder, name, "teacher")} for name in made}, **taken}


def _with_components(settings: Settings, made: dict[str, dict[str, Any]], further: dict[str, dict[str, Any]] | None = None) -> Settings:
    """Returns settings whose other components are read and not made again, with further components."""
    left_out = outside(settings.teacher)  # nothing is trained any more that takes a temperature of theirs
    components = {name: made.get(name, own) for name, own in settings.teacher.components.items() if name not in left_out}
    return settings.with_teacher(replace(settings.teacher, components={**components, **(further or {})}))


def _together(trials: Trials, found: Found, made: dict[str, dict[str, Any]]) -> Found:
    """Adds up the trained components of several trials, which costs no training, and takes over the sum of those that get a weight.

    Where some get none, the others are added up by themselves: what the search compares is what the recipe will train.
    """
    if not teacher_kind(found.settings.teacher).is_ensemble:
        return found
    part = trained_part(found.settings.teacher)
    teachers = [trial for trial in trials.finished.values() if trial.stage == "teacher" and trial.name != found.trial.name]
    others = [trial for trial in teachers if trial.value is not None]
    others = sorted(others, key=lambda trial: -(trial.value or 0.0))[:TOGETHER]
    if part is None or not others:
        return found
    own = part[0]
    best = {"artifact": join(trials.url(found.trial.name), "components", own, "teacher")}
    kept, added, trial_name = {f"{own}-{n + 2}": t for n, t in enumerate(others)}, 0, "together"
    while len(kept) != added:
        further = {name: {"artifact": join(trials.url(t.name), "components", own, "teacher")} for name, t in kept.items()}
        trial = trials.run(trial_name, "teacher", _with_components(found.settings, {**made, own: best}, further))
        if not is_ahead(trial, found.trial, trials.metric):
            return found
        weights = read_manifest(join(trials.url(trial.name), "teacher"), "teacher")["components"]
        added, kept = len(kept), {name: t for name, t in kept.items() if weights[name]["weight"] >= LEAST_WEIGHT}
        if not kept:
            return found
        trial_name = f"together-{len(kept) + 1}"
    components = {**found.settings.teacher.components, **{name: _difference(t.settings, found.settings, own) for name, t in kept.items()}}
    because = f"{len(kept) + 1} trained teachers together: {_gain(trial, found.trial, trials.metric)}"
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
    seed = base.teacher.components[name].get(SEED)
    return differing | ({} if seed is None else {SEED: seed})


def _name_of(stage: str, question: Question, changes: JsonObject) -> str:
    """Names a trial after the setting that it changes first."""
    setting, value = next(iter(changes.items()))
    return f"{stage}-{setting.split('.', 1)[1]}-{value}".replace(" ", "")
