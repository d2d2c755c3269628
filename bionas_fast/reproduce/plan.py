"""The commands behind the paper's tables, at a scale: which runs there are, and what each of them needs first."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

import yaml

from bionas_fast.errors import InputError, expect_count, unknown
from bionas_fast.runs.files import write_atomic

#: The file, in the folder of all runs, that says what they are.
RECORD = "reproduce.yaml"
#: The commands that begin runs, in a folder of their own; the others write into the folder that is named.
_RUNS = ("search", "train")
_FOLDER = re.compile(r"\{([a-z0-9-]+)\}")


@dataclass(frozen=True)
class Step:
    """One command of ``bionas-fast``.

    Attributes:
        name: name of its run.
        seed: its seed.
        words: the command, without the folder of its results.
        folder: that folder.
        needs: the folders of the steps that come before it.
    """

    name: str
    seed: int
    words: tuple[str, ...]
    folder: Path
    needs: tuple[Path, ...] = ()

    @property
    def is_run(self) -> bool:
        """Whether it is a search or a training."""
        return self.words[0] in _RUNS

    def command(self, *, resume: bool = False) -> list[str]:
        """Return the words of the whole command."""
        return [*self.words, "--resume" if resume else "--out", str(self.folder)]

    def __str__(self) -> str:
        return shlex.join(["bionas-fast", *self.command()])


@dataclass(frozen=True)
class Attacks:
    """The attacks of a scale.

    Attributes:
        networks: the attacked runs, in the order of the paper's columns.
        source: the run whose network transferred attacks are computed on.
        options: further options of ``bionas-fast attack``.
    """

    networks: tuple[str, ...]
    source: str
    options: str


@dataclass(frozen=True)
class Scale:
    """The commands at a scale.

    Attributes:
        name: ``desk`` or ``paper``.
        seeds: number of seeds, by default.
        runs: the command of each run, by its name; ``{NAME}`` is the folder of another run with the same seed.
        attack: the attacks.
    """

    name: str
    seeds: int
    runs: Mapping[str, str]
    attack: Attacks

    @classmethod
    def read(cls, name: str) -> Scale:
        """Read the commands of a scale.

        Raises:
            InputError: an unknown scale.
        """
        if name not in scale_names():
            raise unknown("scale", name, scale_names())
        data = read_table(f"{name}.yaml")
        attack = data["attack"]
        attacks = Attacks(tuple(attack["networks"]), attack["source"], attack["options"])
        return cls(name, int(data["seeds"]), data["runs"], attacks)


def scale_names() -> tuple[str, ...]:
    """Return the names of all scales."""
    return "desk", "paper"


def read_table(file: str) -> Any:
    """Read a YAML file of this package."""
    return yaml.safe_load(resources.files(__package__).joinpath(file).read_text(encoding="utf-8"))


@dataclass(frozen=True)
class Plan:
    """The runs at a scale, in a folder.

    Attributes:
        scale: the commands.
        out: the folder of all runs.
        seeds: number of seeds.
        options: further words of every search and training.
    """

    scale: Scale
    out: Path
    seeds: int
    options: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        expect_count("seeds", self.seeds)
        for word in ("--out", "--resume", "--seed", "--seeds", "--compare"):
            if word in self.options:
                raise InputError(f"options: {word} is chosen here; leave it out")

    def folder(self, name: str, seed: int) -> Path:
        """Return the folder of a run."""
        return self.out / name / f"seed-{seed}"

    def has(self, name: str) -> bool:
        """Whether there is such a run at this scale."""
        return name in self.scale.runs

    def steps(self, names: Sequence[str]) -> list[Step]:
        """Return the steps of runs and of all that they need, a seed after the other, each after what it needs."""
        return [step for seed in range(self.seeds) for step in self._of_seed(names, seed)]

    def _of_seed(self, names: Sequence[str], seed: int) -> list[Step]:
        found: dict[str, Step] = {}

        def add(name: str) -> None:
            if name in found:
                return
            needed = _FOLDER.findall(self.scale.runs[name])
            for other in needed:
                add(other)
            folders = {other: self.folder(other, seed) for other in needed}
            words = [_FOLDER.sub(lambda m: str(folders[m[1]]), w) for w in shlex.split(self.scale.runs[name])]
            own = (*words, *self.options, "--seed", str(seed))
            found[name] = Step(name, seed, own, self.folder(name, seed), tuple(folders.values()))

        for name in names:
            add(name)
        return list(found.values())

    def attack_steps(self, attacks: Sequence[str]) -> Iterator[Step]:
        """Return the attacks on the trained networks, one command for each seed."""
        own = self.scale.attack
        for seed in range(self.seeds):
            networks = [self.folder(name, seed) for name in own.networks]
            source = self.folder(own.source, seed)
            words = [f"{name}={path}" for name, path in zip(own.networks, networks, strict=True)]
            further = shlex.split(own.options)
            command = ("attack", *words, "--source", str(source), "--attacks", ",".join(attacks), *further)
            folder = self.folder("attack", seed)
            yield Step("attack", seed, (*command, "--seed", str(seed)), folder, (*networks, source))

    def claim(self) -> None:
        """Create the folder, and record what it is for.

        Raises:
            InputError: it is used otherwise, or cannot be written.
        """
        own = {"scale": self.scale.name, "options": shlex.join(self.options)}
        path = self.out / RECORD
        try:
            self.out.mkdir(parents=True, exist_ok=True)
            used = any(self.out.iterdir())
            found = yaml.safe_load(path.read_text(encoding="utf-8")) if path.is_file() else None
        except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
            raise InputError(f"{self.out}: cannot be used: {' '.join(str(error).split())}") from None
        if found is None and used:
            raise InputError(f"{self.out} is not empty and has no {RECORD}; choose another folder")
        if found is not None and found != own:
            raise InputError(f"{self.out} holds runs of {found}, not of {own}; choose another folder")
        if found is None:
            write_atomic(path, yaml.safe_dump(own, sort_keys=False))
