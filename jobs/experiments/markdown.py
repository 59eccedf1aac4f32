"""Tables and figures of reports as Markdown."""

from collections.abc import Sequence

from .convergence import SHARE
from .document import Comparison, Convergence, Spread, over_seeds

CONVERGENCE_NOTE = (
    f"Steps from the start of training to {SHARE:g} of a validation metric: of the teacher's at the same seed for a student that has one, "
    "else of the model's own at its chosen epoch. Models without epochs, which are fitted in closed form or add up others, have -. Seconds "
    "are those of the epochs until then, validation included, without what comes before the first step. Counted where validation is "
    "measured, after whole epochs: a training that starts above it shows its first one."
)
LINEAR_NOTE = (
    "Steps and seconds from the start of training to the whole validation metric of the best model that is fitted in closed form, at the "
    "same seed. A student's seconds leave out its teacher's training. The best one is that of the highest mean over the seeds. Counted as "
    "above: at validations, so that the first of them is the earliest that can be shown."
)


def row(cells: Sequence[str]) -> str:
    """Formats a row of a table."""
    return "| " + " | ".join(cells) + " |"


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Formats a table whose first column is text and whose others are figures."""
    return "\n".join([row(head), "|---|" + "---:|" * (len(head) - 1), *map(row, rows)])


def spread(value: Spread, digits: int = 4) -> str:
    """Formats mean ± standard deviation."""
    deviation = "" if value["deviation"] is None else f" ± {value['deviation']:.{digits}f}"
    return f"{value['mean']:.{digits}f}{deviation}"


def p_value(p: float) -> str:
    """Formats a p-value."""
    return f"{p:.3f}" if p >= 0.001 else f"{p:.1e}"


def comparison_cells(comparison: Comparison) -> list[str]:
    """Formats a comparison: its models, the difference, its interval, and the p-values of t-test, Holm and sign flips."""
    return [
        f"{comparison['first']} - {comparison['second']}",
        f"{comparison['difference']:+.4f}",
        f"{comparison['low']:+.4f} to {comparison['high']:+.4f}",
        *(p_value(p) for p in (comparison["p_t"], comparison["p_holm"], comparison["p_sign_flip"])),
    ]


def convergence_cells(convergence: Convergence) -> list[str]:
    """Formats the steps and the seconds of a convergence: means and deviations of the seeds that reached it, and how many did."""
    found = [reached for reached in convergence["by_seed"] if reached is not None]
    if not found:
        return ["-", "-"] if convergence["fitted"] else ["never", "never"]
    some = "" if len(found) == len(convergence["by_seed"]) else f" ({len(found)} of {len(convergence['by_seed'])} seeds, else never)"
    steps, seconds = ([float(reached[key]) for reached in found] for key in ("steps", "seconds"))
    return [f"{spread(over_seeds(steps), 0)}{some}", spread(over_seeds(seconds), 1)]
