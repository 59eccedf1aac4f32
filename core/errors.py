"""Defines the errors that the command line prints as one message."""


class InputError(ValueError):
    """Signals bad input: a file, a row or a setting. The message names it, what was expected and what to do.

    The command line prints the message alone, without a traceback.
    """


class RunError(RuntimeError):
    """Signals that a run cannot go on for a reason beyond its input: workers failed too often, or the cluster has no room."""
