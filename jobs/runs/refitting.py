"""Fixes what a finished run has chosen on validation, so that the same can be trained on all interactions."""

import dataclasses
from typing import Any

from ...core.artifact import read_manifest
from ...core.config import TeacherConfig
from ...core.errors import InputError
from ...core.storage import JsonObject, join
from ...core.teacher import teacher_kind
from ...core.teacher.ensemble import TEMPERATURE, WEIGHT, artifact_of, component_configs
from ..settings import Settings
from .results import read_student_manifest

FOLDER = "refit"  # in the run's folder


def refit_settings(settings: Settings, taught: bool) -> Settings:
    """Returns the settings of the run that trains what a finished run has chosen, with its validation interactions among train.

    Epochs are the best ones of the teacher, of each component of an ensemble and of the student; the settings of linear models, the
    weights of an ensemble and the temperatures of its components are those that were chosen.

    Args:
        settings: Of the finished run.
        taught: Whether its student has a teacher.

    Raises:
        InputError: the run has prompt-tuning in rounds, or a component that was trained elsewhere.
    """
    if taught and settings.distill.rounds > 1:
        raise InputError(
            f"{settings.dir}: distill.rounds={settings.distill.rounds}: which epochs of each round were the best is not kept, so that "
            "refit cannot train them again; set distill.rounds=1 in a run of its own"
        )
    train = dataclasses.replace(settings.student.train, epochs=read_student_manifest(settings)["best_epoch"] + 1)
    return dataclasses.replace(
        settings,
        run=dataclasses.replace(settings.run, dir=join(settings.dir, FOLDER)),
        source=dataclasses.replace(settings.source, join_validation=True),
        teacher=_teacher(settings) if taught else settings.teacher,
        student=dataclasses.replace(settings.student, train=train),
    )


def _teacher(settings: Settings) -> TeacherConfig:
    """Returns the teacher's settings with what was chosen."""
    config, manifest = settings.teacher, read_manifest(join(settings.dir, "teacher"), "teacher")
    if teacher_kind(config).is_ensemble:
        return dataclasses.replace(config, components=_components(settings, manifest))
    chosen = _chosen(manifest)
    sections: dict[str, Any] = {name: dataclasses.replace(getattr(config, name), **values) for name, values in chosen.items()}
    return dataclasses.replace(config, **sections)


def _chosen(manifest: JsonObject) -> dict[str, dict[str, Any]]:
    """Returns what was chosen for a single teacher, by section of its settings and name."""
    if "linear" in manifest:
        return {"linear": manifest["linear"]["settings"]}
    return {"train": {"epochs": manifest["best_epoch"] + 1}}


def _components(settings: Settings, manifest: JsonObject) -> dict[str, dict[str, Any]]:
    """Returns the components that have a weight, with it, and one without that alone has vectors by modality which a loss reads."""
    weights = {name: facts["weight"] for name, facts in manifest["components"].items()}
    kept: dict[str, dict[str, Any]] = {}
    modal = next((name for name, config in component_configs(settings.teacher).items() if config.has_modality_vectors), None)
    for name, own in settings.teacher.components.items():
        if artifact_of(own) is not None:
            if weights[name]:
                raise InputError(
                    f"{settings.dir}: teacher.components.{name} is a teacher of another run, which was not trained with the validation "
                    "interactions; name its settings in place of its artifact in a run of its own, and refit that"
                )
            continue
        trained = read_manifest(join(settings.dir, "components", name, "teacher"), "teacher")
        if weights[name] or (name == modal and _reads_modalities(settings)):
            sections = {section: {**own.get(section, {}), **values} for section, values in _chosen(trained).items()}
            temperature = {TEMPERATURE: trained["config"][TEMPERATURE]} if TEMPERATURE in own else {}
            kept[name] = {**own, **temperature, **sections, WEIGHT: weights[name]}
    return kept


def _reads_modalities(settings: Settings) -> bool:
    """Whether a loss of the student reads the teacher's vectors by modality."""
    return bool(settings.distill.list_weight or settings.distill.embedding_weight or settings.distill.losses)
