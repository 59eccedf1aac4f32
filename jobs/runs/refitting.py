"""Fixes what a finished run has chosen on validation, so that the same can be trained on all interactions."""

import dataclasses
from typing import Any, cast

from ...core.artifact import read_manifest
from ...core.config import DistillationConfig, StudentConfig, TeacherConfig
from ...core.errors import InputError
from ...core.linear.base import LinearTeacher
from ...core.linear.config import CONTENT, LinearConfig
from ...core.objectives import needs_modalities
from ...core.storage import JsonObject, join
from ...core.teacher import teacher_kind
from ...core.teacher.ensemble import TEMPERATURE, WEIGHT, artifact_of, component_configs
from ...distributed.artifacts.teacher import teacher_config_of
from ...distributed.config import LabelConfig
from ..settings import Settings, build
from .results import read_student_manifest
from .stages import require_done

FOLDER = "refit"  # in the run's folder


def was_taught(settings: Settings) -> bool:
    """Whether the student of a finished run had a teacher.

    Raises:
        InputError: the run has no finished student.
    """
    return require_done(settings.dir, "distill", "refit").made_with["labels"] is not None


def refit_settings(settings: Settings, taught: bool) -> Settings:
    """Returns the settings of the run that trains what a finished run has chosen, with its validation interactions among train.

    Epochs are the best ones of the teacher, of each component of an ensemble and of the student; the settings of linear models, the
    weights of an ensemble and the temperatures of its components are those that were chosen.

    Args:
        settings: That the finished run's folder has saved.
        taught: Whether its student has a teacher.

    Raises:
        InputError: a stage has not finished, the run has prompt-tuning in rounds, or a component that was trained elsewhere.
    """
    settings = _as_trained(settings, taught)
    if taught and settings.labels.run is not None:
        raise InputError(
            f"{settings.dir}: the teacher is that of {settings.labels.run} (labels.run), and this run cannot train it again; refit that "
            "run, or one without labels.run"
        )
    if taught and settings.distill.rounds > 1:
        raise InputError(
            f"{settings.dir}: distill.rounds={settings.distill.rounds}: which epochs of each round were the best is not kept, so that "
            "refit cannot train them again; set distill.rounds=1 in a run of its own"
        )
    train = dataclasses.replace(settings.student.train, epochs=read_student_manifest(settings)["best_epoch"] + 1)
    return dataclasses.replace(
        settings.with_teacher(_teacher(settings)) if taught else settings,
        run=dataclasses.replace(settings.run, dir=join(settings.dir, FOLDER)),
        source=dataclasses.replace(settings.source, joined=join(settings.dir, "dataset")),
        student=dataclasses.replace(settings.student, train=train),
    )


def _as_trained(settings: Settings, taught: bool) -> Settings:
    """Returns settings with those that teacher and student were trained with: other verbs may have saved others since.

    Raises:
        InputError: a stage has not finished.
    """
    made = require_done(settings.dir, "distill", "refit").made_with
    distill = made["distill"] if taught else {**dataclasses.asdict(settings.distill), **made["distill"]}
    sections: dict[str, Any] = {
        "student": build(StudentConfig, made["student"]),
        "distill": build(DistillationConfig, distill),
        "run": dataclasses.replace(settings.run, seed=made["run"]["seed"]),
        "cluster": dataclasses.replace(settings.cluster, engine=made["engine"]["engine"]),
    }
    if made["select_by"] is not None:
        sections["evaluation"] = dataclasses.replace(settings.evaluation, select_by=made["select_by"])
    if "fan_outs" in made["engine"]:
        sampled = {name: value for name, value in made["engine"].items() if name != "engine"}
        sections["sampling"] = dataclasses.replace(settings.sampling, **{"exclude_seed_edges": False, **sampled})
    if taught:
        require_done(settings.dir, "train-teacher", "refit")
        sections["labels"] = build(LabelConfig, made["labels"])
        sections["teacher"] = teacher_config_of(read_manifest(join(settings.dir, "teacher"), "teacher"))
    return dataclasses.replace(settings, **sections)


def _teacher(settings: Settings) -> TeacherConfig:
    """Returns the teacher's settings with what was chosen."""
    config, manifest = settings.teacher, read_manifest(join(settings.dir, "teacher"), "teacher")
    if teacher_kind(config).is_imported:
        raise _trained_elsewhere(settings, f"teacher.kind={config.kind}")
    if teacher_kind(config).is_ensemble:
        return dataclasses.replace(config, components=_components(settings, manifest))
    if "linear" not in manifest:
        return dataclasses.replace(config, train=dataclasses.replace(config.train, epochs=manifest["best_epoch"] + 1))
    undecided = {name: getattr(LinearConfig(), name) for name in _decided(config) if name not in manifest["linear"]["settings"]}
    return dataclasses.replace(config, linear=dataclasses.replace(config.linear, **{**undecided, **manifest["linear"]["settings"]}))


def _trained_elsewhere(settings: Settings, what: str) -> InputError:
    return InputError(
        f"{settings.dir}: {what} was trained elsewhere, and refit cannot train it on the validation interactions; train it there on train "
        f"and validation, and distil from the new vectors in a run of its own with source.joined={join(settings.dir, 'dataset')}"
    )


def _decided(config: TeacherConfig) -> tuple[str, ...]:
    """Returns the names of the settings of a linear model that decide its vectors; what was not chosen of them had no meaning."""
    kind = cast(type[LinearTeacher], teacher_kind(config))
    return kind.reads + (CONTENT if kind.adds_content else ())


def _components(settings: Settings, manifest: JsonObject) -> dict[str, dict[str, Any]]:
    """Returns the components that have a weight, with it, and one without that alone has vectors by modality which a loss reads."""
    weights, configs = {name: facts["weight"] for name, facts in manifest["components"].items()}, component_configs(settings.teacher)
    kept: dict[str, dict[str, Any]] = {}
    imported = [name for name, config in configs.items() if teacher_kind(config).is_imported]
    for name in imported:
        if weights[name]:
            raise _trained_elsewhere(settings, f"teacher.components.{name}")
        del configs[name]  # no weight: it is left out
    modal = next((name for name, config in configs.items() if config.has_modality_vectors), None)
    for name, own in settings.teacher.components.items():
        if artifact_of(own) is not None:
            if weights[name]:
                raise InputError(
                    f"{settings.dir}: teacher.components.{name} is a teacher of another run, which was not trained with the validation "
                    "interactions; name its settings in place of its artifact in a run of its own, and refit that"
                )
        elif name in configs and (weights[name] or (name == modal and _reads_modalities(settings))):
            trained = read_manifest(join(settings.dir, "components", name, "teacher"), "teacher")
            kept[name] = {**own, **_chosen(own, configs[name], trained), WEIGHT: weights[name]}
    return kept


def _chosen(own: dict[str, Any], config: TeacherConfig, trained: JsonObject) -> dict[str, Any]:
    """Returns what was chosen for a component, over its own settings."""
    if "linear" in trained:
        given = {name: value for name, value in own.get("linear", {}).items() if name not in _decided(config)}
        return {"linear": {**given, **trained["linear"]["settings"]}}
    temperature = {TEMPERATURE: trained["config"][TEMPERATURE]} if TEMPERATURE in own else {}
    return {"train": {**own.get("train", {}), "epochs": trained["best_epoch"] + 1}, **temperature}


def _reads_modalities(settings: Settings) -> bool:
    """Whether a loss of the student reads the teacher's vectors by modality."""
    return any(needs_modalities(name) for name in settings.distill.loss_weights())
