"""Takes credentials out of what is saved or shown: a URL may carry a password, and files and logs outlive whoever wrote it there."""

import re
from typing import Any, TextIO, TypeVar

Value = TypeVar("Value")

HIDDEN = "***"
_URL = re.compile(r"[a-zA-Z][a-zA-Z0-9+.-]*://[^\s'\"<>]+")
_PASSWORD = re.compile(r"^([^:]+://[^/@:]*):[^/@]+@")  # scheme://user:password@host
_SECRET = re.compile(r"([?&][\w.-]*(?:token|secret|password|passwd|signature|credential|key|sig)[\w.-]*=)[^&#]+", re.IGNORECASE)


def redacted(text: str) -> str:
    """Returns a text with `***` for passwords of URLs (scheme://user:password@host) and for secrets in their queries (?token=...)."""
    return _URL.sub(lambda url: _SECRET.sub(rf"\1{HIDDEN}", _PASSWORD.sub(rf"\1:{HIDDEN}@", url[0])), text)


def redacted_tree(value: Value) -> Value:
    """Returns JSON-able values with every string among them `redacted`, keys too."""
    if isinstance(value, str):
        return redacted(value)  # type: ignore[return-value]
    if isinstance(value, dict):
        return {redacted_tree(key): redacted_tree(each) for key, each in value.items()}  # type: ignore[return-value]
    if isinstance(value, (list, tuple)):
        return [redacted_tree(each) for each in value]  # type: ignore[return-value]
    return value


class RedactedStream:
    """A text stream that writes what it gets, `redacted`, to another one; all else is that one's."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        """Writes a text; returns its length."""
        self._stream.write(redacted(text))
        return len(text)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


def has_hidden(url: str) -> bool:
    """Whether something was taken out of a URL, so that it cannot be opened."""
    return f":{HIDDEN}@" in url or f"={HIDDEN}" in url
