"""Defines the teacher that adds up the scores of other teachers (docs/method.md 7.2)."""

import contextlib
import dataclasses
import difflib
import math
import re
from collections.abc import Iterator, Mapping
from typing import Any, ClassVar

from ..config import TeacherConfig
from ..config.vectors import VectorsConfig
from ..errors import InputError
from ..kinds import TEACHERS
from ..linear.config import LinearConfig
from .base import Teacher

ARTIFACT, TEMPERATURE, WEIGHT, SEED = "artifact", "temperature", "weight", "seed"
SEED_STRIDE = 1_000  # between the seeds of components, so that runs of neighbouring seeds share none of them
OF_COMPONENT = ("kind", "linear", "vectors")  # settings that a component never takes from the ensemble


class EnsembleTeacher(Teacher):
    """Declares the ensemble; `core/ensemble.py` adds its components up, and the engine trains or reads each of them."""

    engines: ClassVar[tuple[str, ...]] = ("full", "sampled")  # the sampled one where it trains or fits every component
    is_ensemble: ClassVar[bool] = True
    losses: ClassVar[tuple[str, ...]] = ("bpr", "softmax")  # its components' own

    @classmethod
    def check(cls, config: TeacherConfig) -> None:
        check_components(config)

    @classmethod
    def why_full(cls, config: TeacherConfig) -> str | None:
        for name, component in component_configs(config).items():
            why = TEACHERS.get(component.kind).why_full(component)
            if why is not None:
                return renamed(config, name, why)
        return None

    @classmethod
    def learns_from_features(cls, config: TeacherConfig) -> bool:
        return any(component.reads_features for component in component_configs(config).values())

    @classmethod
    def has_modality_vectors(cls, config: TeacherConfig) -> bool:
        """Returns whether a component that the run trains has vectors by modality: the ensemble takes those of the first one."""
        left_out = outside(config)
        for name, component in component_configs(config).items():
            with in_part(config, name):
                if name not in left_out and component.has_modality_vectors:
                    return True
        return False

    @classmethod
    def final_dim(cls, config: TeacherConfig, num_modalities: int) -> int:
        return config.ensemble_rank


def renamed(config: TeacherConfig, name: str, message: str) -> str:
    """Returns a message about a component's settings with the names that they have among the ensemble's.

    Args:
        config: The ensemble's settings.
        name: Of the component.
        message: It names settings as those of a teacher: `teacher.linear.rank`. Those that the component takes from the ensemble keep their
            names, and then the message begins with the component's.
    """
    own, keys = f"teacher.components.{name}", {*OF_COMPONENT, *config.components[name]}
    settings = rf"(?<![\w./])teacher\.(?=({'|'.join(map(re.escape, sorted(keys)))})\b(?!=ensemble\b))"
    said = re.sub(settings, f"{own}.", message)
    return f"{own}: {said}" if said.startswith("teacher.") and not said.startswith(own) else said


@contextlib.contextmanager
def in_part(config: TeacherConfig, name: str) -> Iterator[None]:
    """While the block runs, errors about the settings of what `parts_of` names are those of a component, where it is one (`renamed`)."""
    try:
        yield
    except InputError as error:
        if not TEACHERS.get(config.kind).is_ensemble:
            raise
        raise InputError(renamed(config, name, str(error))) from error


def artifact_of(component: dict[str, Any]) -> str | None:
    """Returns the URL of a component that is taken as it is, a teacher artifact; None for one that the run trains."""
    url = component.get(ARTIFACT)
    return None if url is None else str(url)


def given_weights(config: TeacherConfig) -> dict[str, float] | None:
    """Returns the weights that the settings give the components, by name, which add up to 1; None where validation chooses them.

    Raises:
        InputError: some components have a weight and others have none, and not all of these weights are 0 (`outside`); a weight is no
            number of at least 0; or every component has the weight 0.
    """
    given = {name: own[WEIGHT] for name, own in config.components.items() if WEIGHT in own}
    for name, value in given.items():
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value < math.inf:
            raise InputError(f"teacher.components.{name}.weight={value!r}: expected a number of at least 0")
    without = [name for name in config.components if name not in given]
    if not given or (without and not any(given.values())):
        return None
    if without:
        raise InputError(
            f"teacher.components.{without[0]} has no weight, and {next(iter(given))} has one; give every component a weight, or none for "
            "validation to choose them"
        )
    total = sum(given.values())
    if not total:
        raise InputError("teacher.components: every weight is 0; give at least one component a weight above 0")
    return {name: value / total for name, value in given.items()}


def outside(config: TeacherConfig) -> set[str]:
    """Returns the names of the components that are no part of the sum: those with the weight 0 where others have no weight.

    They are trained for a later component, which takes the best one's temperature.
    """
    if given_weights(config) is not None:
        return set()
    return {name for name, own in config.components.items() if WEIGHT in own}


def component_seed(config: TeacherConfig, name: str, seed: int) -> int:
    """Returns the seed of a component in a run of a seed: components of the same kind and settings differ by nothing else.

    Raises:
        InputError: the component's own `seed` is no whole number of at least 0.
    """
    own = config.components[name].get(SEED, 0)
    if isinstance(own, bool) or not isinstance(own, int) or own < 0:
        raise InputError(f"teacher.components.{name}.seed={own!r}: expected a whole number of at least 0, which run.seed is added to")
    return seed + SEED_STRIDE * own


def component_configs(config: TeacherConfig) -> dict[str, TeacherConfig]:
    """Returns the settings of the components that the run trains, by name.

    A component has the ensemble's own settings, but for those of `teacher.linear` and `teacher.vectors`, with what it names over them; its
    kind is its name where it names none. One with `temperature: null` takes the temperature of an earlier one (`temperature_sources`),
    here of the first.

    Raises:
        InputError: a component names a setting that there is not, or one that is out of bounds.
    """
    configs: dict[str, TeacherConfig] = {}
    for name, own in config.components.items():
        if artifact_of(own) is None:
            own = {key: value for key, value in own.items() if key not in (WEIGHT, SEED)}
            if TEMPERATURE in own and own[TEMPERATURE] is None:
                sources = temperature_sources(config, name, configs)
                own = {**own, TEMPERATURE: configs[sources[0]].temperature}
            configs[name] = _config(config, name, own)
    return configs


def alike(config: TeacherConfig) -> list[list[str]]:
    """Returns the names of the components of the sum that differ by their seed alone, in groups of two or more."""
    groups: list[tuple[object, dict[int, str]]] = []  # an open temperature may end at another one than a given
    left_out = outside(config)
    for name, own in component_configs(config).items():
        if name in left_out:
            continue
        seed, settings = component_seed(config, name, 0), (own, config.components[name].get(TEMPERATURE, own.temperature))
        group = next((names for of, names in groups if of == settings and seed not in names), None)
        if group is None:
            groups.append((settings, {seed: name}))
        else:
            group[seed] = name
    return [list(names.values()) for _, names in groups if len(names) > 1]


def temperature_sources(config: TeacherConfig, name: str, configs: Mapping[str, TeacherConfig]) -> list[str]:
    """Returns the components before `name` that are trained by a softmax with a temperature of their own: it takes that of the best one.

    Args:
        config: The ensemble's settings.
        name: A component.
        configs: The settings of the components before it, or of all.

    Returns:
        Names; none where the component has a temperature of its own.

    Raises:
        InputError: it has none, and no component before it is trained by a softmax.
    """
    if config.components[name].get(TEMPERATURE, config.temperature) is not None:
        return []
    earlier = list(config.components)[: list(config.components).index(name)]
    own = [each for each in earlier if config.components[each].get(TEMPERATURE, config.temperature) is not None]
    found = [each for each in own if each in configs and configs[each].loss == "softmax" and TEACHERS.get(configs[each].kind).takes_steps()]
    if not found:
        raise InputError(
            f"teacher.components.{name}.temperature: null takes the temperature of the best component before it that a softmax trains, and "
            "there is none; name one first, or set a temperature"
        )
    return found


def parts_of(config: TeacherConfig) -> dict[str, TeacherConfig]:
    """Returns the settings of what a teacher trains or fits, by name: an ensemble its components, another kind itself."""
    return component_configs(config) if TEACHERS.get(config.kind).is_ensemble else {config.kind: config}


def check_components(config: TeacherConfig) -> None:
    """Raises InputError where an ensemble has no components, or one that cannot be."""
    if not config.components:
        raise InputError("teacher.components={} names no component; name teachers, such as {lightgcn: {}, spectral: {}, ease: {}}")
    for name, own in config.components.items():
        if not name.replace("-", "").replace("_", "").isalnum():
            raise InputError(f"teacher.components: {name!r} also names a folder; use letters, digits, - and _ alone")
        if artifact_of(own) is not None and own.keys() - {ARTIFACT, WEIGHT}:
            raise InputError(f"teacher.components.{name}={own}: a teacher that is taken as an artifact has no settings but its weight")
        component_seed(config, name, 0)
        if own.get("kind", name) == config.kind:
            raise InputError(f"teacher.components.{name}: a component cannot be an ensemble; name its components here")
    configs = component_configs(config)
    read = {source for name in configs for source in temperature_sources(config, name, configs)}
    for name in outside(config) - read:
        raise InputError(
            f"teacher.components.{name} has the weight 0, the others have none, and no component after it takes its temperature "
            "(temperature: null), so that it would be trained for nothing; leave it out, or give every component a weight, or none"
        )


def _config(config: TeacherConfig, name: str, own: dict[str, Any]) -> TeacherConfig:
    """Builds the settings of one component."""
    fields = {field.name for field in dataclasses.fields(TeacherConfig)}
    sections = {"train": config.train, "linear": LinearConfig(), "vectors": VectorsConfig()}
    values: dict[str, Any] = {"kind": name, "components": {}, **sections}
    for key, value in own.items():
        if key not in fields or key == "components":
            close = difflib.get_close_matches(key, sorted(fields), 1, 0.6)
            hint = f"did you mean {close[0]}?" if close else "its settings are those of the section teacher, without components"
            raise InputError(f"teacher.components.{name}: unknown setting {key}; {hint}")
        if key in sections:
            value = _section(sections[key], value, f"teacher.components.{name}.{key}")
        values[key] = value
    with in_part(config, name):
        return dataclasses.replace(config, **values)


def _section(base: Any, own: Any, where: str) -> Any:
    """Returns a section's settings with those that a component names over them."""
    fields = {field.name for field in dataclasses.fields(base)}
    if not isinstance(own, dict) or not own.keys() <= fields:
        raise InputError(f"{where}={own!r}: expected settings of {', '.join(sorted(fields))}")
    try:
        return dataclasses.replace(base, **own)
    except InputError as error:  # it names the setting as one of `train` or of `teacher.linear`
        section = where.rpartition(".")[2]
        raise InputError(re.sub(rf"^(teacher\.)?{section}\.", f"{where}.", str(error))) from error
