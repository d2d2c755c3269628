"""The programs in examples/ run, and print what they say; the notebook runs through its code cells."""

from __future__ import annotations

import ast
import importlib.util
import json
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
EXAMPLES = ROOT / "examples"
NOTEBOOK = EXAMPLES / "first_search.ipynb"

#: A text of the output of each program: a result that shows that the program did its work.
OUTPUT = {
    "convert_models": r"resnet18  loss \d.*'usf': 0\.9(?s:.*)convnext  loss(?s:.*)'frsf'(?s:.*)vit .*'brsf'",
    "custom_rule": r"zeros in B 0\.\d+, angle(?s:.*)test accuracy [5-9]\d\.\d %(?s:.*)ternary|usf",
    "custom_operation": r"\"bottleneck@(?:usf|brsf)<-(?s:.*)logits \(2, 10\)",
    "hebbian_pretraining": r"change of the filters [1-9]\.\d+(?s:.*)accuracy 9\d\.\d % after fine-tuning",
    "two_processes": r"Genotype(?s:.*)(?:the same|rounding decided an edge)",
    "both_gradients": r"bp: .*blindness \+0\.0 ± 0\.0(?s:.*)fa: ",
    "lightning_module": r"'accuracy': (?s:.*)'usf'",
    "optuna_pruning": r"[1-9]\d* of 12 trials ended early; best 0\.[89]",
}
#: Packages that the extra test does not install, as they bring many others; ``pip install -e ".[examples]"`` does.
EXTRA = {"lightning_module": "lightning", "optuna_pruning": "optuna"}


def test_every_example_is_listed():
    table = (EXAMPLES / "README.md").read_text(encoding="utf-8")
    files = {path.name for path in EXAMPLES.iterdir() if path.suffix in (".py", ".ipynb")}
    assert set(re.findall(r"^\| `([^`]+)`", table, re.MULTILINE)) == files
    assert {path.stem for path in EXAMPLES.glob("*.py")} == set(OUTPUT)


@pytest.mark.parametrize("name", OUTPUT)
def test_example_runs(name, forked, tmp_path):
    if name in EXTRA and importlib.util.find_spec(EXTRA[name]) is None:
        pytest.skip(f'needs {EXTRA[name]}: pip install -e ".[examples]"')
    done = forked.program((EXAMPLES / f"{name}.py").read_text(encoding="utf-8"), cwd=tmp_path)
    assert done.code == 0, done.stderr
    assert re.search(OUTPUT[name], done.stdout), done.stdout


def test_the_notebook_has_no_outputs():
    for cell in json.loads(NOTEBOOK.read_text(encoding="utf-8"))["cells"]:
        assert not cell.get("outputs")
        assert cell.get("execution_count") is None


def test_the_notebook_runs(forked, tmp_path):
    cells = json.loads(NOTEBOOK.read_text(encoding="utf-8"))["cells"]
    program = []
    for cell in cells:
        if cell["cell_type"] == "code":
            code = ast.parse("".join(cell["source"]))
            if isinstance(code.body[-1], ast.Expr):  # a notebook shows the value of the last line
                code.body[-1] = ast.parse(f"print(type(_ := {ast.unparse(code.body[-1])}), _)").body[0]
            program.append(ast.unparse(code))
    done = forked.program("\n".join(program), cwd=tmp_path)
    assert done.code == 0, done.stderr
    assert re.search(r"Genotype.*(?s:.*)% of the test images(?s:.*)'accuracy'", done.stdout), done.stdout
