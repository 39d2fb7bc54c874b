"""How an audit tells how far it is."""

from typing import Protocol

__all__ = ["Part", "Progress", "Silent"]


class Progress(Protocol):
    """Shows how far a piece of work is. Units are about seconds of work on a small machine."""

    def start(self, total: float) -> None:
        """Begins: there will be ``total`` units."""

    def advance(self, units: float, text: str) -> None:
        """So many units have been finished since the last call; ``text`` says what runs next."""

    def finish(self) -> None:
        """Ends, also after an error; called once."""


class Silent:
    """Shows nothing."""

    def start(self, total: float) -> None:
        """Begins."""

    def advance(self, units: float, text: str) -> None:
        """Goes on."""

    def finish(self) -> None:
        """Ends."""


class Part:
    """Work that belongs to a larger one, which starts and finishes by itself."""

    def __init__(self, whole: Progress) -> None:
        self._whole = whole

    def start(self, total: float) -> None:
        """Nothing: the whole has begun."""

    def advance(self, units: float, text: str) -> None:
        """Tells the whole."""
        self._whole.advance(units, text)

    def finish(self) -> None:
        """Nothing: the whole goes on."""
