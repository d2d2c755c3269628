"""The watch over the other processes, by gloo: what NCCL would wait for is a thread that sleeps."""

from __future__ import annotations

LOST = "another process of this run has ended or cannot be reached"


def test_a_dead_process_ends_those_that_wait_for_it(forked):
    """One raises, once it was freed from what it waited for; one cannot be, says the message and ends."""
    done = forked.program("from helpers.watch_worker import run; run()", processes=3)
    assert done.code == 2, done.stderr[-3000:]
    assert done.stderr.splitlines()[-1] == f"error: {LOST}; resume with: a command"
    assert done.stdout == f"raised: {LOST}\n"
    assert done.seconds < 60
