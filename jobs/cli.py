"""`promptmm VERB [RECIPE] [key=value ...]`: the command line."""

import signal
import sys
import warnings
from typing import Any

from ..core.errors import InputError, RunError

USAGE = """usage: promptmm VERB [RECIPE] [key=value ...]
       promptmm VERB --help

RECIPE is a YAML file or the name of a shipped recipe; settings are overridden by dotted keys, values in YAML:
  promptmm pipeline demo
  promptmm pipeline tiktok source.path=DIR teacher.train.epochs=20 source.modalities='{visual: image_feat.npy}'

verbs, in their order (pipeline does those from prepare to recommend; a finished one is not repeated; experiment trains many models):"""

INTERRUPTED = 130


def main(arguments: list[str] | None = None) -> int:
    """Runs one verb; returns the exit code: 0, 1 for a failure, 2 for bad input, 130 when interrupted."""
    warnings.filterwarnings("ignore", category=FutureWarning)
    words = sys.argv[1:] if arguments is None else arguments
    try:
        from .experiment import run_experiment
        from .experiment_settings import load_experiment
        from .settings import load_settings
        from .verbs import VERB_FUNCTIONS, run_verb
    except ModuleNotFoundError as error:
        print(f"promptmm: the package {error.name} is missing; training needs the extra: pip install 'promptmm[train]'", file=sys.stderr)
        return 1
    verbs = {**VERB_FUNCTIONS, "experiment": run_experiment}
    if not words or words[0] in ("-h", "--help"):
        print(USAGE + "".join(f"\n  {verb:<14} {_first_line(function)}" for verb, function in verbs.items()))
        return 0 if words else 2
    verb, *rest = words
    signal.signal(signal.SIGTERM, _interrupt)
    try:
        if verb not in verbs:
            raise InputError(f"unknown verb {verb!r}; the verbs are {', '.join(verbs)}")
        if "-h" in rest or "--help" in rest:
            _help(verb, verbs[verb])
            return 0
        recipe = rest.pop(0) if rest and "=" not in rest[0] else None
        if verb == "experiment":
            run_experiment(load_experiment(recipe, rest))
        else:
            run_verb(verb, load_settings(recipe, rest))
    except InputError as error:
        print(f"promptmm: {error}", file=sys.stderr)
        return 2
    except RunError as error:
        print(f"promptmm: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("promptmm: interrupted; the same command (without run.redo) goes on from the last checkpoint", file=sys.stderr)
        return INTERRUPTED
    return 0


def _interrupt(signum: int, frame: Any) -> None:
    raise KeyboardInterrupt


def _first_line(function: Any) -> str:
    return (function.__doc__ or "").strip().splitlines()[0]


def _help(verb: str, function: Any) -> None:
    from .experiment_settings import NOT_OF_CELLS, describe_recipe
    from .settings import describe

    text = f"promptmm {verb} [RECIPE] [key=value ...]\n\n{_first_line(function)}\n"
    if verb == "experiment":
        text += (
            f"\nRECIPE is a YAML file or a shipped experiment, with these keys (experiment.KEY=value overrides one):\n{describe_recipe()}\n"
        )
    print(f"{text}\nsettings:\n{describe(verb, NOT_OF_CELLS if verb == 'experiment' else ())}")


if __name__ == "__main__":
    sys.exit(main())
