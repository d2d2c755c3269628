"""Every Python example of the README and the guides runs, and what they name exists."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest
import typer
import yaml

import bionas_fast as bf
from bionas_fast import presets
from bionas_fast.cli.app import Everywhere, app
from bionas_fast.runs.kinds import get_kind, kind_names

ROOT = Path(__file__).parents[1]
REPOSITORY = r"https://(?:github|raw\.githubusercontent)\.com/bionas-fast/bionas-fast(?:/blob|/tree)?"
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


def _blocks(language: str) -> list:
    found = [
        pytest.param(block, id=f"{page.stem}-{number}")
        for page in PAGES
        for number, block in enumerate(re.findall(rf"```{language}\n(.*?)```", page.read_text(), re.DOTALL))
    ]
    assert found
    return found


@pytest.mark.parametrize("code", _blocks("python"))
def test_example_runs(code, forked, tmp_path):
    done = forked.program(code, cwd=tmp_path)
    assert done.code == 0, done.stderr


@pytest.mark.parametrize("text", _blocks("json"))
def test_example_genotype_is_read(text):
    assert bf.Genotype.from_json(text).rules


def _command_lines() -> list:
    """The lines of the pages that call the command, also by torchrun; continued lines are joined."""
    found = []
    for page in PAGES:
        text = page.read_text(encoding="utf-8").replace("\\\n", " ")
        blocks = re.findall(r"```bash\n(.*?)```", text, re.DOTALL)
        cells = re.findall(r"`((?:bionas-fast|torchrun) [^`]*)`", text)
        for line in [line for block in blocks for line in block.splitlines()] + cells:
            called = re.match(r"(?:torchrun .*-m bionas_fast|.*&& bionas-fast|bionas-fast) (.*)", line)
            if called:
                found.append(pytest.param(called[1], id=f"{page.stem}-{called[1]}"))
    return found


#: Words of the pages that stand for a value.
PLACEHOLDERS = {
    r"\$\w+": "0",
    r"\bSEED\b": "0",
    r"\bRULE\b": "softhebb",
    "…": "RUN",
    r"NAME=VALUE|NAME=(?= )": "epochs=1",
}


@pytest.fixture(scope="module")
def commands():
    return typer.main.get_command(app)


@pytest.mark.parametrize("line", _command_lines())
def test_commands_take_their_arguments(line, commands):
    """Parsed as by the command line, which is not run; the settings are checked together with those of the preset."""
    for pattern, value in PLACEHOLDERS.items():
        line = re.sub(pattern, value, line)
    _, words = Everywhere.taken_from(shlex.split(line.split(" > ")[0], comments=True))
    if not words:
        return
    command = commands.get_command(None, words[0])
    assert command is not None, words[0]
    if len(words) == 1:
        return
    context = command.make_context(words[0], words[1:])
    typed = {
        name: value
        for name, value in context.params.items()
        if (source := context.get_parameter_source(name)) and source.name == "COMMANDLINE"
    }
    kinds = [get_kind(kind) for kind in kind_names() if get_kind(kind).command == words[0]]
    if not kinds:
        return
    sets = {name: yaml.safe_load(value) for name, _, value in (text.partition("=") for text in typed.get("sets", ()))}
    errors = []
    for kind in kinds:
        try:
            preset = presets.get(typed["preset"], kind.name).settings if "preset" in typed else {}
            fields = kind.settings.model_fields
            own = {name: _parsed(value, fields[name].default) for name, value in typed.items() if name in fields}
            kind.settings(**{**preset, **sets, **own})
            return
        except bf.InputError as error:
            errors.append(str(error))
    raise AssertionError(errors)


def _parsed(value: object, default: object) -> object:
    return tuple(value.split(",")) if isinstance(default, tuple) and isinstance(value, str) else value


def test_benchmarks_are_found(forked):
    words = ["benchmarks/", "--benchmark-only", "--collect-only", "-q", "-p", "no:cacheprovider"]
    program = f"import os, sys, pytest; os.environ.pop('PYTEST_XDIST_WORKER', None); sys.exit(pytest.main({words}))"
    done = forked.program(program, cwd=ROOT)
    assert done.code == 0, done.stderr
    assert "test_search_step.py::test_peak_memory" in done.stdout


def test_links_lead_somewhere():
    for page in PAGES:
        for target in re.findall(r"\]\((?!https?:)([^)#]+)(?:#[^)]*)?\)", page.read_text()):
            assert (page.parent / target).exists(), f"{page.name}: {target}"


def test_links_to_the_repository_lead_somewhere():
    """The README is shown in other places than the repository, so its links are absolute."""
    assert not re.findall(r"\]\((?!https?:|#)([^)]+)\)", (ROOT / "README.md").read_text())
    for page in [*PAGES, ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md", ROOT / "pyproject.toml"]:
        for target in re.findall(REPOSITORY + r"/main/([^)\s\"#]+)", page.read_text()):
            assert (ROOT / target).exists(), f"{page.name}: {target}"
