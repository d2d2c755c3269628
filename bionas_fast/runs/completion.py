"""Runs from their arguments to their end: the common part of searches and trainings."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypedDict, TypeVar

from bionas_fast.config import RunConfig
from bionas_fast.data import AnyDataset, Data, as_dataset, with_data
from bionas_fast.errors import expect_type
from bionas_fast.runs.callbacks import Callback, expect_callbacks
from bionas_fast.runs.execution import execute
from bionas_fast.runs.folder import Out, RunFolder, run_folder
from bionas_fast.runs.progress import Progress
from bionas_fast.runs.resume import open_run
from bionas_fast.runs.terminal import listener
from bionas_fast.runs.trainer import Trainer
from bionas_fast.runtime import distributed

if TYPE_CHECKING:
    from typing_extensions import Unpack

T = TypeVar("T", bound=Trainer)


class RunArguments(TypedDict):
    """The arguments of all searches and trainings.

    Attributes:
        data: the images, in place of the dataset that the settings name.
        out: the folder of a new run, by default one under ``runs/``; False: nothing is written.
        resume: the folder of the run to resume.
        progress: receives the progress; True shows it on stderr.
        callbacks: see the run.
    """

    data: Data | None
    out: Out
    resume: str | Path | None
    progress: Progress | bool | None
    callbacks: Sequence[Callback]


@contextmanager
def completed(
    kind: type[T],
    config: RunConfig | None,
    *,
    name: Callable[[Any], str],
    make: Callable[[Any, RunFolder | None, AnyDataset | None], T],
    **arguments: Unpack[RunArguments],
) -> Iterator[tuple[T, RunFolder | None]]:
    """Check the arguments of a run, open it, and take it to its end; yield its trainer and its locked folder.

    Args:
        kind: the class of the trainer.
        config: the settings; by default those of the resumed run, or the defaults.
        name: names the folder of a new run, from its settings.
        make: builds the trainer from the settings, the folder of a resumed run and the images given, if any.
        arguments: see :class:`RunArguments`.

    Raises:
        InputError: an argument of another type; otherwise as of :func:`.open_run`, and the errors of the run.
        Interrupted: after Ctrl-C or SIGTERM. The run is saved if it has a folder.
    """
    data, callbacks, resume = arguments["data"], arguments["callbacks"], arguments["resume"]
    settings: Any = kind.settings
    expect_type("config", config, (settings, type(None)), f"write bf.{settings.__name__}(dataset='digits')")
    expect_callbacks(callbacks)
    given = None if data is None else as_dataset(data)
    if given is not None and (config is not None or resume is None):
        config = with_data(config or settings(), given)
    place = run_folder(arguments["out"], resume, lambda: name(config or settings()))
    with (
        distributed.process_group(),
        open_run(kind, config, out=place, resume=resume, make=lambda config, folder: make(config, folder, given)) as (
            trainer,
            folder,
        ),
    ):
        execute(
            trainer,
            folder,
            listener(arguments["progress"]),
            callbacks,
            build=lambda small: make(small, folder, None),
        )
        yield trainer, folder
