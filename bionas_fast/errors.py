"""How bad input is reported: one exception with a message that says what to do, one warning category."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class InputError(ValueError):
    """Something the caller gave cannot be used. The message names it, what was expected and where.

    The command line prints the message as one line and exits with code 2.
    """

    def at(self, place: str) -> InputError:
        """The same complaint with the place in front."""
        return type(self)(f"{place}: {self}")


class Unregistered(InputError):
    """A name that nothing is registered under; a plugin may bring it."""


class Interrupted(KeyboardInterrupt):
    """A run was told to stop, and has. The message says how to go on with it.

    The command line prints the message as one line and exits with code 130.
    """


class BionasWarning(UserWarning):
    """Something works, but not as fast or not on as much as the caller may think."""


def unknown(
    kind: str, name: object, known: Iterable[str], where: str = "", error: type[InputError] = InputError
) -> InputError:
    """An :class:`InputError` for a name that is not in a list, with the nearest ones that are.

    Args:
        kind: what the name should name, such as ``"rule"``.
        name: what was given.
        known: every name that would have been accepted.
        where: the place it was found, put in front of the message.
        error: what to make of it.
    """
    known = list(known)
    near = difflib.get_close_matches(str(name).lower(), known, n=3, cutoff=0.5)
    hint = f"did you mean {' or '.join(repr(n) for n in near)}? " if near else ""
    place = f"{where}: " if where else ""
    return error(f"{place}unknown {kind} {name!r}; {hint}known: {', '.join(known) or 'none'}")


def shown(value: object, length: int = 80) -> str:
    """A value as a message shows it, cut off where it is long."""
    try:
        return f"{value!r:.{length}}"
    except ValueError:  # an integer within has more digits than Python writes
        return f"a {type(value).__name__} with a number of too many digits"
