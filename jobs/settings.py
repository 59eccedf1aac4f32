"""Settings of a run from recipes (YAML) and dotted overrides, checked before any work starts."""

import dataclasses
import difflib
import math
import re
import types
import typing
from collections.abc import Collection, Iterator, Mapping
from importlib import resources
from pathlib import Path
from typing import Any, TypeVar

from ..core.config import TeacherConfig
from ..core.errors import InputError
from ..core.storage import exists, is_local, join, local_path, read_bytes, readable_file
from ..core.teacher.ensemble import ARTIFACT, TEMPERATURE
from .config import Settings
from .yaml_text import cut, read_yaml

__all__ = ["Settings", "build", "describe", "load_saved", "load_settings", "parse_override", "read_recipe", "walk"]

T = TypeVar("T")
DEFAULT_DIR = "runs/default"
CONFIGURATION = "config.yaml"  # in a run's folder: the settings that its verbs were run with
DERIVED = "derived.yaml"  # in a run's folder: the recipe of a pipeline that named none


def walk(kind: Any = Settings, prefix: str = "") -> Iterator[tuple[str, dataclasses.Field, Any]]:
    """Yields (dotted name, field, default) of every setting, section by section."""
    for field in dataclasses.fields(kind):
        name = f"{prefix}{field.name}"
        if dataclasses.is_dataclass(field.type):
            yield from walk(field.type, f"{name}.")
        else:
            factory = field.default_factory
            yield name, field, field.default if factory is dataclasses.MISSING else factory()


def load_settings(recipe: str | None, overrides: list[str]) -> Settings:
    """Reads the settings of a recipe, with `key=value` overrides over it.

    Args:
        recipe: A YAML file, the name of a shipped recipe, or None: for the recipe that a pipeline without one has derived in the run's
            folder, or where there is none the defaults.
        overrides: `a.b=value`, the value in YAML.

    Raises:
        InputError: an unknown key (with the nearest valid one), a wrong type or a value out of bounds.
    """
    values = read_recipe(recipe) if recipe else _derived(overrides)
    where = recipe or DERIVED
    _check_keys(values, Settings, "", where)
    for override in overrides:
        _set(values, *parse_override(override))
    run = values.setdefault("run", {})
    if run.get("dir") is None:
        run["dir"] = f"runs/{Path(recipe).stem}" if recipe else DEFAULT_DIR
    return build(Settings, _with_absolute_folders(values))


def _with_absolute_folders(values: dict) -> dict:
    """Makes the folders that every worker opens absolute: workers have working directories of their own."""
    places = [(values.get(section), name) for section, name in (("run", "dir"), ("cluster", "cache_dir"), ("labels", "run"))]
    teacher = values.get("teacher")
    components = teacher.get("components") if isinstance(teacher, dict) else None
    places += [(own, ARTIFACT) for own in components.values()] if isinstance(components, dict) else []
    for section, name in places:
        if not isinstance(section, dict):  # not there, or refused when the settings are built
            continue
        url = section.get(name)
        if isinstance(url, str) and url and is_local(url):
            section[name] = str(local_path(url))
    return values


def load_saved(sections: Collection[str], overrides: list[str], also: Collection[str] = ()) -> Settings:
    """Reads the settings that a run's folder has saved, with `key=value` overrides over some of them.

    Args:
        sections: Names of the sections whose settings may be overridden.
        overrides: `a.b=value`, the value in YAML; `run.dir` names the folder, else it is the default one.
        also: Dotted names of further settings that may be.

    Raises:
        InputError: the folder has no saved settings, or an override is of another section.
    """
    given = dict(parse_override(override) for override in overrides)
    folder = str(given.get("run.dir") or DEFAULT_DIR)
    folder = str(local_path(folder)) if is_local(folder) else folder
    if not exists(join(folder, CONFIGURATION)):
        raise InputError(f"{folder}: no run has saved its settings here ({CONFIGURATION}); name the run's folder: run.dir=DIR")
    values = read_yaml(read_bytes(join(folder, CONFIGURATION)), join(folder, CONFIGURATION))
    for name, value in {**given, "run.dir": folder}.items():
        if name not in ("run.dir", *also) and name.split(".")[0] not in sections:
            raise InputError(
                f"{name}: the setting of the run in {folder} stands; what can be set here is {', '.join(('run.dir', *also))} and the "
                f"sections {', '.join(sections)}"
            )
        _set(values, name, value)
    return build(Settings, _with_absolute_folders(values))


def _derived(overrides: list[str]) -> dict:
    """Reads the values of derived.yaml in the folder of the run that the overrides name; none where there is no such file."""
    given = dict(parse_override(override) for override in overrides)
    url = join(str(given.get("run.dir") or DEFAULT_DIR), DERIVED)
    values = read_yaml(read_bytes(url), url) if exists(url) else {}
    return values if isinstance(values, dict) else {}


def parse_override(override: str) -> tuple[str, object]:
    """Splits `key=value` into the key and the value, which is YAML.

    Raises:
        InputError: there is no sign, or the value is not valid YAML.
    """
    key, sign, text = override.partition("=")
    if not sign:
        raise InputError(f"{override!r}: expected key=value, for instance teacher.train.epochs=20")
    return key.strip(), read_yaml(text, f"the value of {cut(override)!r}")


def build(kind: type[T], values: dict) -> T:
    """Builds a settings class from nested plain values, as a recipe or a saved configuration holds them.

    Raises:
        InputError: values have a wrong type or are out of bounds; the message names every one of them.
    """
    import pydantic

    if kind is Settings:
        values = _with_typed_components(values)
    problems = list(_odd_values(values, kind, ""))
    if problems:
        raise InputError("; ".join(problems))
    try:
        return pydantic.TypeAdapter(kind).validate_python(values)
    except pydantic.ValidationError as error:
        raise InputError("; ".join(_explain(e) for e in error.errors())) from error


PLAIN_TYPES = {"class", "int", "float", "str", "bool", "None", "NoneType", "list", "dict"}


def _odd_values(values: Any, kind: Any, prefix: str) -> Iterator[str]:
    """Yields what is wrong with values that their types would take: true as the number 1, infinity, and a text of no letters."""
    if not isinstance(values, Mapping) or not dataclasses.is_dataclass(kind):
        return
    for field in dataclasses.fields(kind):
        if field.name not in values:
            continue
        name, value, of = f"{prefix}{field.name}", values[field.name], str(field.type)
        if dataclasses.is_dataclass(field.type):
            yield from _odd_values(value, field.type, f"{name}.")
        elif not set(re.findall(r"\w+", of)) <= PLAIN_TYPES:  # which may hold anything, or check themselves
            continue
        elif not re.search(r"\bbool\b", of) and any(isinstance(each, bool) for each in _leaves(value)):
            yield f"{name}={cut(_plain(value))}: expected {_type_name(field.type)}; true and false (also yes and no) are switches"
        elif any(isinstance(each, float) and math.isinf(each) for each in _leaves(value)):
            yield f"{name}={value}: expected a finite number"
        elif value == "":
            yield f"{name}='': an empty text; leave the setting out, or name what is meant"


def _leaves(value: Any) -> Iterator[Any]:
    """Yields the values in lists and mappings, however deep."""
    if isinstance(value, Mapping):
        value = list(value.values())
    if isinstance(value, (list, tuple)):
        for each in value:
            yield from _leaves(each)
    else:
        yield value


def _with_typed_components(values: dict) -> dict:
    """Returns the values with those of `teacher.components` as their settings' types ask for, as pydantic makes all others: 1e-3 a number.

    Raises:
        InputError: a component's value has a wrong type; the message names every one.
    """
    teacher = values.get("teacher")
    if not isinstance(teacher, Mapping) or not isinstance(teacher.get("components"), Mapping):
        return values
    problems: list[str] = []
    typed = {name: _typed(own, TeacherConfig, f"teacher.components.{name}", problems) for name, own in teacher["components"].items()}
    if problems:
        raise InputError("; ".join(problems))
    return {**values, "teacher": {**teacher, "components": typed}}


def _typed(values: Any, kind: Any, where: str, problems: list[str]) -> Any:
    """Returns some settings of a section with values of their types; appends what is wrong. Other keys stay as they are."""
    import pydantic

    if not isinstance(values, Mapping):
        return values
    types_of: dict[str, Any] = {field.name: field.type for field in dataclasses.fields(kind)}
    typed = dict(values)
    for name, value in values.items():
        of = types_of.get(name)
        if dataclasses.is_dataclass(of):
            typed[name] = _typed(value, of, f"{where}.{name}", problems)
        elif of is not None and (odd := list(_odd_values({name: value}, kind, f"{where}."))):
            problems += odd
        elif of is not None and not (name == TEMPERATURE and value is None):  # which is that of the best component before it
            try:
                typed[name] = pydantic.TypeAdapter(of).validate_python(value)
            except pydantic.ValidationError as error:
                problems += [_explain({**each, "loc": (where, name, *each["loc"])}) for each in error.errors()]
    return typed


def _explain(error: Any) -> str:
    original = error.get("ctx", {}).get("error")
    if original is not None:
        return str(original)
    name = ".".join(str(part) for part in error["loc"] if part not in ("str", "int", "function-after", "nullable"))
    return f"{name}={cut(repr(error['input']))}: {error['msg']}"


def read_recipe(recipe: str, package: str = "promptmm.jobs.recipes") -> dict:
    """Reads the values of a YAML file, or of the recipe of that name that a package ships.

    Raises:
        InputError: there is neither, or the text is no mapping in valid YAML.
    """
    shipped = {p.name.removesuffix(".yaml"): p for p in resources.files(package).iterdir() if p.name.endswith(".yaml")}
    if recipe in shipped and not Path(recipe).is_file():
        text = shipped[recipe].read_bytes()
    elif Path(recipe).exists():
        text = readable_file(Path(recipe)).read_bytes()
    else:
        raise InputError(f"recipe {recipe!r}: no such file, and no shipped recipe of that name (there are: {', '.join(sorted(shipped))})")
    values = read_yaml(text, f"recipe {recipe}") or {}
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
    """Names the sections around a setting: `a` and `a.b` of `a.b.c`."""
    parts = name.split(".")
    return [".".join(parts[:end]) for end in range(1, len(parts))]


def _set(values: dict, key: str, value: object) -> None:
    if key not in {name for name, _, _ in walk()}:
        section = [n for n, _, _ in walk() if n.startswith(key + ".")]
        if section:
            raise InputError(f"{key} is a section; set one of its settings, such as {section[0]}=...")
        raise InputError(f"unknown setting {key}{_nearest(key)}")
    *path, last = key.split(".")
    for part in path:
        values = values.setdefault(part, {})
    values[last] = value


def describe(sections: Collection[str], without: Collection[str] = ()) -> str:
    """Lists the settings of some sections for people, each with its type, default and help.

    Args:
        sections: Names of sections of `Settings`.
        without: Dotted names of settings to leave out.
    """
    lines = []
    for name, field, default in walk():
        if name.split(".")[0] in sections and name not in without:
            kind = _type_name(field.type)
            lines.append(f"  {name} ({kind}, default {_plain(default)})\n      {field.metadata['help']}")
    return "\n".join(lines)


def _type_name(kind: object) -> str:
    if isinstance(kind, types.UnionType) or typing.get_origin(kind) is typing.Union:
        return " or ".join("not set" if a is type(None) else _type_name(a) for a in typing.get_args(kind))
    return kind.__name__ if isinstance(kind, type) and not typing.get_args(kind) else str(kind).replace("typing.", "")


def _plain(value: object) -> str:
    return "not set" if value is None else str(value).lower() if isinstance(value, bool) else str(value)
