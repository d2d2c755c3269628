"""Exceptions and the warning category of the library."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class InputError(ValueError):
    """Unusable input. The message names the argument and what was expected.

    The command line prints the message as one line and exits with code 2. Characters that would break the line or
    steer a terminal, such as those of a hostile file name, are escaped.
    """

    def __init__(self, message: object = "") -> None:
        super().__init__(printable(str(message)))

    def at(self, place: str) -> InputError:
        """Return a copy of the error with the place before its message."""
        return type(self)(f"{place}: {self}")


class ShapeError(InputError, RuntimeError):
    """A tensor of the wrong shape; a RuntimeError too, as torch.nn raises it."""


class NotFinite(InputError):
    """A number that is NaN or infinite. A run extends the message by its epoch and step and by likely causes.

    Attributes:
        what: the number, as a noun phrase.
        settings: the settings that are likely causes; if empty, those of the run that raise the numbers most.
    """

    def __init__(self, what: str, settings: Iterable[str] = ()) -> None:
        super().__init__(f"{what} is not finite")
        self.what = what
        self.settings = tuple(settings)

    def at(self, place: str) -> NotFinite:
        return type(self)(f"{place}: {self.what}", self.settings)


class Diverged(InputError):
    """The end of a run whose numbers are no longer finite. The message names the place and likely causes."""


class Unregistered(InputError):
    """An unregistered name; it may come from a plugin that is not imported.

    Attributes:
        explained: whether the message names the plugins of the run.
    """

    def __init__(self, message: str, *, explained: bool = False) -> None:
        super().__init__(message)
        self.explained = explained


class PeerLost(InputError):
    """Another process of the run has ended."""


class Interrupted(KeyboardInterrupt):
    """A run was interrupted by a signal and saved. The message says how to resume it.

    The command line prints the message as one line and exits with code 130.
    """


class BionasWarning(UserWarning):
    """A result that is correct, but slower or more limited than the caller may expect."""


def unknown(
    kind: str, name: object, known: Iterable[str], where: str = "", error: type[InputError] = InputError
) -> InputError:
    """Create an :class:`InputError` for an unknown name; the message suggests similar known ones.

    Args:
        kind: the kind of name, such as ``"rule"``.
        name: the unknown name.
        known: all valid names.
        where: the place of the name, put before the message.
        error: the class of the error.
    """
    known = list(known)
    hint = near(name, known)
    place = f"{where}: " if where else ""
    return error(f"{place}unknown {kind} {shown(name)}; {hint}known: {', '.join(known) or 'none'}")


def near(name: object, known: Iterable[str]) -> str:
    """Return a question about the known names that are similar to an unknown one, and a space; empty if there is none.

    Args:
        name: the unknown name.
        known: all valid names.
    """
    found = difflib.get_close_matches(str(name).lower(), list(known), n=3, cutoff=0.5)
    return f"did you mean {' or '.join(map(repr, found))}? " if found else ""


def expect_type(name: str, value: object, kind: type | tuple[type, ...], advice: str = "") -> None:
    """Check the type of an argument.

    Args:
        advice: what to write instead, put after the message.

    Raises:
        InputError: another type.
    """
    if isinstance(value, kind) and not (isinstance(value, bool) and kind is int):
        return
    kinds = kind if isinstance(kind, tuple) else (kind,)
    wanted = " or ".join("None" if own is type(None) else own.__name__ for own in kinds)
    raise InputError(f"{name}: expected {wanted}, got {type(value).__name__}{f'; {advice}' if advice else ''}")


def expect_count(name: str, value: int) -> None:
    """Check a number of things, which is an integer of at least 1.

    Raises:
        InputError: another value.
    """
    expect_type(name, value, int)
    if value < 1:
        raise InputError(f"{name}: expected at least 1, got {value}")


def printable(text: str) -> str:
    """Escape the characters of a text that are not printable, as :func:`repr` does."""
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else repr(c)[1:-1] for c in text)


def shown(value: object, length: int = 80) -> str:
    """Format a value for a message, truncated to ``length`` characters."""
    try:
        return f"{value!r:.{length}}"
    except ValueError:  # it contains an integer with more digits than Python formats
        return f"a {type(value).__name__} with a number of too many digits"
