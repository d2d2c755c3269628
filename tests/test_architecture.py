"""The shape of the code: who may import whom, and that a type checker sees into the kernels."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
#: Openings of a docstring whose subject is missing.
OPENINGS = {"What", "How", "Of", "Those"}

needs_link = pytest.mark.skipif(
    not (ROOT / "bionas_fast" / "kernels").is_symlink(), reason="the link bionas_fast/kernels was lost on the way here"
)


@needs_link
def test_imports_keep_the_contracts():
    """The contracts are those of pyproject.toml."""
    script = (
        "import sys; from importlinter.cli import lint_imports; sys.exit(lint_imports(no_logo=True, no_cache=True))"
    )
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


#: Calls, and what mypy says to each.
CALLS = {
    "pooling.reference.forward(torch.ones(1, 4, 4, 1), 1)": "",
    "pooling.reference.forward('x', 1)": 'Argument 1 to "forward" has incompatible type "str"; expected "Tensor"',
    "pooling.reference.forward(torch.ones(1, 4, 4, 1))": 'Missing positional argument "stride" in call to "forward"',
    "pooling.reference.forwards": "Module has no attribute",
}


@needs_link
def test_a_wrong_call_into_a_kernel_is_a_type_error(tmp_path):
    caller = tmp_path / "caller_of_kernels.py"
    head = ["import torch", "import bionas_fast.kernels.pooling.reference", "from bionas_fast.kernels import pooling"]
    caller.write_text("\n".join([*head, *CALLS]))
    # Takes long only where no run over the package has left a cache.
    done = subprocess.run([sys.executable, "-m", "mypy", caller], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode in (0, 1), done.stdout + done.stderr
    for number, (call, message) in enumerate(CALLS.items(), 1 + len(head)):
        # By its name alone: from its cache mypy reports under the folder of an earlier run.
        said = [line for line in done.stdout.splitlines() if f"{caller.name}:{number}: " in line]
        assert len(said) == bool(message) and all(message in line for line in said), (call, done.stdout)


def _docstrings() -> dict[str, str]:
    found = {}
    for folder in ("bionas_fast", "kernels"):
        for path in sorted((ROOT / folder).rglob("*.py")):
            for node in ast.walk(ast.parse(path.read_text())):
                if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)):
                    place = f"{path.relative_to(ROOT)}:{getattr(node, 'lineno', 1)}"
                    found[place] = ast.get_docstring(node) or ""
    return found


def test_docstrings_open_with_a_verb_or_a_noun():
    assert [place for place, text in _docstrings().items() if text.partition(" ")[0] in OPENINGS] == []
