"""`promptmm VERB [RECIPE] [key=value ...]`: the command line."""

import os
import signal
import sys
import time
import warnings
from types import FrameType
from typing import TYPE_CHECKING, TextIO, cast

from ..core.errors import InputError, RunError
from ..core.redaction import RedactedStream
from ..core.threads import spin_count
from ..distributed.parent import GO_ON, INTERRUPTED, ONE_INTERRUPT_SECONDS, outlive

if TYPE_CHECKING:
    from .verbs.verb import AnyVerb

USAGE = """usage: promptmm VERB [RECIPE] [key=value ...]
       promptmm VERB --help

RECIPE is a YAML file or the name of a shipped recipe; settings are overridden by dotted keys, values in YAML:
  promptmm pipeline demo
  promptmm pipeline tiktok source.path=DIR teacher.train.epochs=20 source.modalities='{visual: image_feat.npy}'
  promptmm my_module:MY_VERB demo      (an own verb, from my_module.py in this folder)

verbs, in their order (pipeline does those from prepare to recommend; a finished one is not repeated; inspect says
what a catalog is like; experiment trains many models):"""

HELP = ("-h", "--help")
EXTRAS = {  # of packages that the base install does not have: Ray's workers and the graph store need `train`, all else needs `local`
    **dict.fromkeys(("ray", "dgl", "deepspeed", "ninja"), "train"),
    **dict.fromkeys(("pydantic", "yaml", "scipy", "matplotlib", "tensorboardX", "psutil"), "local"),
}


def command() -> int:
    """What a person starts: runs the verb that the words of the command line name, in a process that this one outlives (`outlive`).

    Returns:
        The exit code, see `main`.
    """
    return outlive(_without_credentials, sys.argv[1:])


def _without_credentials(words: list[str]) -> int:
    """Runs `main` with passwords in URLs left out of all that it prints, as they are of all that it saves."""
    sys.stdout, sys.stderr = (cast(TextIO, RedactedStream(stream)) for stream in (sys.stdout, sys.stderr))
    return main(words)


def main(arguments: list[str] | None = None) -> int:
    """Runs one verb, in this process; returns the exit code: 0, 1 for a failure, 2 for bad input, 130 when interrupted.

    Args:
        arguments: Words of the command line after `promptmm`; None: those of this process.
    """
    warnings.filterwarnings("ignore", category=FutureWarning)
    words = sys.argv[1:] if arguments is None else arguments
    _find_own_modules()
    os.environ.update(spin_count())  # before torch is imported
    try:
        if not words or words[0] in HELP:
            print(_usage())
            return 0 if words else 2
        for number in (signal.SIGTERM, signal.SIGHUP):
            if signal.getsignal(number) != signal.SIG_IGN:  # as `nohup` sets it
                signal.signal(number, _Interrupt())
        _run(*words)
    except (InputError, FloatingPointError) as error:  # a loss that is not finite is a matter of settings or data
        print(f"promptmm: {error}", file=sys.stderr)
        return 2
    except ModuleNotFoundError as error:
        extra = EXTRAS.get((error.name or "").partition(".")[0])
        if extra is None:  # what a module of the user's own imports
            return _failed(error)
        print(f"promptmm: the package {error.name} is missing; {_remedy(error.name or '', extra)}", file=sys.stderr)
        return 1
    except RunError as error:
        print(f"promptmm: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print(f"promptmm: interrupted; {GO_ON}", file=sys.stderr)
        return INTERRUPTED
    except Exception as error:
        return _failed(error)
    return 0


def _failed(error: Exception) -> int:
    """Prints the sentence for an error that is none of promptmm's own, and keeps its traceback."""
    from .error_sentences import keep_traceback, sentence_of

    print(f"promptmm: {sentence_of(error)}{keep_traceback(error)}", file=sys.stderr)
    return 1


def _remedy(package: str, extra: str) -> str:
    """Says what to do about a package of an extra that is not installed."""
    if package.partition(".")[0] == "dgl" and sys.version_info >= (3, 12):  # the extra leaves it out there
        return (
            "DGL 1.1.3, which training on Ray and the sampled engine need, has no wheel for Python 3.12 or later: use Python 3.10 or 3.11, "
            "or cluster.executor=local with cluster.engine=full"
        )
    return f"training needs the extra: pip install 'promptmm[{extra}]'"


def _usage() -> str:
    from .verbs import VERBS

    return USAGE + "".join(f"\n  {verb.name:<14} {verb.help}" for verb in VERBS.values())


def _run(name: str, *rest: str) -> None:
    """Runs a verb, or shows its help."""
    from .verbs.table import find_verb, load, start

    verb = find_verb(name)
    if any(word in HELP for word in rest):
        print(_help(name, verb))
        return
    has_recipe = bool(rest) and "=" not in rest[0]
    recipe, overrides = (rest[0], rest[1:]) if has_recipe else (None, rest)
    start(verb, load(verb, recipe, list(overrides)))


def _find_own_modules() -> None:
    """Puts the current folder first on the path, so that own verbs and kinds of models are found in it."""
    here = os.getcwd()
    if sys.path[:1] not in ([here], [""]):  # "" is the current folder too
        sys.path.insert(0, here)


class _Interrupt:
    """Handles a signal as Ctrl-C; one that comes twice at once, to a group of processes and from the parent, counts once."""

    def __init__(self) -> None:
        self.last = -ONE_INTERRUPT_SECONDS

    def __call__(self, signum: int, frame: FrameType | None) -> None:
        before, self.last = self.last, time.monotonic()
        if self.last - before >= ONE_INTERRUPT_SECONDS:
            raise KeyboardInterrupt


def _help(name: str, verb: "AnyVerb") -> str:
    from .settings import describe

    text = f"promptmm {name} [RECIPE] [key=value ...]\n\n{verb.help}\n"
    if verb.describe_recipe is not None:
        text += (
            f"\nRECIPE is a YAML file or a shipped {verb.name}, with these keys ({verb.name}.KEY=value overrides one):\n"
            f"{verb.describe_recipe()}\n"
        )
    return f"{text}\nsettings:\n{describe(verb.sections, verb.excluded)}"


if __name__ == "__main__":
    sys.exit(command())
