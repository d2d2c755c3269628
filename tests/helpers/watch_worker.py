"""One of three processes of the test of the watch.

After two blocks that all leave, process 1 is killed. Process 2 can be freed from what it waits for, process 0 cannot.
"""

from __future__ import annotations

import os
import signal
import threading
import time
from datetime import timedelta

from torch import distributed as dist

from bionas_fast.runtime.watch import PeerLost, Watch


def run() -> None:
    dist.init_process_group("gloo")
    rank, freed = dist.get_rank(), threading.Event()
    words = dist.new_group(backend="gloo", timeout=timedelta(days=1))
    for _ in range(2):
        with Watch(words, freed.set) as watch:
            dist.barrier()
        assert watch.lost is None and not freed.is_set()
    try:
        with Watch(words, freed.set, "resume with: a command", grace=60 if rank == 2 else 0.5) as watch:
            dist.barrier()
            if rank == 1:
                os.kill(os.getpid(), signal.SIGKILL)
            if rank == 0:
                time.sleep(120)
            if freed.wait(120) and watch.lost is not None:
                raise watch.lost
    except PeerLost as error:
        print(f"raised: {error}", flush=True)
        os._exit(0)
