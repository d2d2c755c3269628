"""Limits on what is read into memory, checked against headers before anything is allocated."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from bionas_fast.errors import InputError

#: Files with (limit, use) of the control group, in bytes: version 2, then version 1.
_CONTROL_GROUPS = (
    ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory.current"),
    ("/sys/fs/cgroup/memory/memory.limit_in_bytes", "/sys/fs/cgroup/memory/memory.usage_in_bytes"),
)


def available() -> int:
    """Return the bytes of memory that this process may still use: free memory, control group, RLIMIT_AS."""
    limits = [sys.maxsize]
    if free := re.search(r"MemAvailable:\s*(\d+) kB", _text("/proc/meminfo")):
        limits.append(1024 * int(free[1]))
    for limit, used in _CONTROL_GROUPS:
        sizes = _text(limit).strip(), _text(used).strip()
        if all(size.isdigit() for size in sizes):
            limits.append(int(sizes[0]) - int(sizes[1]))
    limits.append(_address_space())
    return max(0, min(limits))


def require(size: int, what: str, hint: str = "") -> None:
    """Raise an :class:`InputError` if ``size`` bytes are more than :func:`available`.

    Args:
        size: bytes needed.
        what: what needs them, in the plural, with the name of the file.
        hint: a way out, put behind the message.
    """
    limit = available()
    if size > limit:
        raise InputError(f"{what} need {_amount(size)} of memory, but {_amount(limit)} are available{hint}")


@contextmanager
def allocating(what: str) -> Iterator[None]:
    """Report a failed allocation as an :class:`InputError` about ``what``."""
    try:
        yield
    except InputError:
        raise
    except (MemoryError, RuntimeError) as error:
        # torch's allocator raises a RuntimeError without a class of its own.
        if isinstance(error, RuntimeError) and "alloc" not in str(error):
            raise
        raise InputError(f"{what} does not fit into memory; {_amount(available())} are available") from error


def _text(path: str) -> str:
    try:
        return Path(path).read_text()
    except OSError:
        return ""


def _address_space() -> int:
    try:
        import resource
    except ImportError:  # Windows
        return sys.maxsize
    limit = resource.getrlimit(resource.RLIMIT_AS)[0]
    if limit == resource.RLIM_INFINITY:
        return sys.maxsize
    pages = _text("/proc/self/statm").split()
    return limit - (int(pages[0]) * os.sysconf("SC_PAGE_SIZE") if pages else 0)


def _amount(size: int) -> str:
    return f"{size / 1e9:.1f} GB" if size >= 1e9 else f"{size / 1e6:.1f} MB"
