"""Numbers as people type them."""

import math

__all__ = ["real"]


def real(text: str) -> float:
    """A finite number, or a fraction such as 8/255.

    Raises:
      ValueError: if it is neither.

    Example:
      >>> real("0.1"), real("51/255")
      (0.1, 0.2)
    """
    over, slash, under = text.partition("/")
    try:
        value = float(over) / float(under) if slash else float(over)
    except ZeroDivisionError:
        value = math.nan
    if not math.isfinite(value):
        raise ValueError(f"neither a number nor a fraction (got {text!r})")
    return value
