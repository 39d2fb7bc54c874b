"""What goes wrong in an audit for a reason that its user can remove."""

__all__ = ["AuditError", "one_line"]

_LONGEST = 300


class AuditError(ValueError):
    """Bad input to an audit; the message is one line: the cause, then the remedy."""


def one_line(error: BaseException) -> str:
    """Somebody else's exception, its kind and its message, on one line.

    Example:
      >>> one_line(KeyError("a"))
      "KeyError: 'a'"
    """
    text = " ".join(str(error).split())
    if len(text) > _LONGEST:
        text = text[:_LONGEST].rstrip() + " ..."
    return f"{type(error).__name__}: {text}" if text else type(error).__name__
