"""The site of the guides: its navigation, the page of the Python API, and that it builds."""

from __future__ import annotations

import importlib.util
import pkgutil
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

import bionas_fast as bf

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"


class _Loader(yaml.SafeLoader):
    """Loader of mkdocs.yml, which names functions of Python."""


_Loader.add_multi_constructor("tag:yaml.org,2002:python/", lambda loader, suffix, node: suffix)


def _config() -> dict:
    return yaml.load((ROOT / "mkdocs.yml").read_text(encoding="utf-8"), _Loader)


def _pages(entries: list) -> list[str]:
    return [
        page
        for entry in entries
        for value in entry.values()
        for page in ([value] if isinstance(value, str) else _pages(value))
    ]


def _public_names() -> set[str]:
    """The names that the package has for users."""
    return set(bf.__all__)


def _objects() -> list[str]:
    return re.findall(r"^::: (\S+)", (DOCS / "api.md").read_text(encoding="utf-8"), re.MULTILINE)


def test_every_page_is_in_the_navigation_once():
    listed = _pages(_config()["nav"])
    assert sorted(listed) == sorted(page.name for page in DOCS.glob("*.md"))


def test_the_site_loads_nothing_from_elsewhere():
    config = _config()
    assert config["theme"]["font"] is False
    assert not [name for name in (*config.get("extra_css", ()), *config.get("extra_javascript", ())) if "//" in name]


@pytest.mark.parametrize("name", _objects())
def test_names_of_the_api_exist(name):
    assert callable(pkgutil.resolve_name(name))


def test_every_public_name_is_in_the_api():
    described = {name.rpartition(".")[2] for name in _objects()}
    packages = {name for name in _public_names() if importlib.util.find_spec(f"bionas_fast.{name}")}
    assert len(_public_names()) > 30
    assert _public_names() - packages - described == set()


@pytest.mark.skipif(
    importlib.util.find_spec("mkdocs") is None or importlib.util.find_spec("mkdocstrings") is None,
    reason="needs the extra docs, which torchattacks does not share an environment with",
)
def test_the_site_builds_without_a_warning(tmp_path):
    command = [sys.executable, "-m", "mkdocs", "build", "-q", "--strict", "-d", str(tmp_path / "site")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    page = (tmp_path / "site" / "api.html").read_text(encoding="utf-8")
    for name in ("SearchConfig", "feedback_angle", "with_rule"):
        assert name in page
