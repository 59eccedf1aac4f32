"""The error for everything a user can get wrong."""


class InputError(ValueError):
    """Bad input: a file, a row or a setting. The message names it, what was expected and what to do.

    The command line prints the message alone, without a traceback.
    """


class RunError(RuntimeError):
    """A run that cannot go on for a reason beyond its input: workers that failed too often, a cluster without room."""
