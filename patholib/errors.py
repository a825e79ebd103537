"""The one error type: every refusal names its subject, the reason and the remedy."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class PathoError(Exception):
    """A refusal a person can act on.

    code: stable, lower case with underscores, for programs (`"label_conflict"`).
    subject: the file (relative path), the CSV row or column, or the parameter that is meant; escaped by `shown`.
    reason: what is wrong with it. remedy: what to do about it.
    """

    def __init__(self, code: str, subject: str, reason: str, remedy: str):
        self.code, self.subject, self.reason, self.remedy = code, shown(subject), reason, remedy
        super().__init__(code, self.subject, reason, remedy)  # all four, so that the error survives pickling

    def __str__(self) -> str:
        return f"[{self.code}] {self.subject}: {self.reason}. {self.remedy}"

    def _render_traceback_(self) -> list[str]:
        """Jupyter shows these lines instead of a traceback."""
        return [f"PathoError {self}"]


def shown(text) -> str:
    """Any text on one line, safe to print: a newline or a terminal code in it is shown, not obeyed."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in str(text))


def nearest(name: str, known: Iterable[str]) -> str:
    """Ends a message about an unknown name: the closest known one, or the whole list."""
    known = [str(k) for k in known]
    close = difflib.get_close_matches(str(name), known, n=1, cutoff=0.5)
    return f"did you mean {close[0]!r}?" if close else f"known: {', '.join(known)}"
