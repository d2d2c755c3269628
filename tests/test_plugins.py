"""Modules of a user's own: imported where they are named, never because a file names them."""

from __future__ import annotations

import re
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

import bionas_fast as bf
from bionas_fast import rules
from bionas_fast.cli import app
from bionas_fast.errors import InputError
from bionas_fast.plugins import import_plugins
from bionas_fast.space import get_space, register_space
from helpers.registries import snapshot

PLUGIN = '''
import torch
import bionas_fast as bf
from bionas_fast.data import Dataset, register_dataset
from bionas_fast.space import Candidate, Space, get_space, register_operation, register_space

print("imported")  # so that a test sees whether it was


@register_operation("own_conv")
def own_conv(channels, stride, rule, searching):
    return torch.nn.Sequential(
        torch.nn.ReLU(),
        bf.nn.Conv2d(channels, channels, 3, stride, 1, bias=False, rule=rule, feedback_init="xavier"),
        torch.nn.BatchNorm2d(channels, affine=not searching),
    )


@bf.rules.register
class Own(bf.rules.Rule):
    """Half of the weights."""

    name = "own_rule"

    def feedback(self, weight, state):
        return weight / 2


@register_space("own-space")
def own_space():
    return Space("own-space", get_space("bionas").candidates + (Candidate("own_conv", "own_rule"),))


@register_dataset("own-data")
def own_data(data_dir, *, download, seed):
    images, labels = torch.rand(64, 1, 6, 6, generator=torch.Generator().manual_seed(0)), torch.arange(64) % 3
    return Dataset.from_tensors("own-data", (images, labels), (images, labels))
'''

SMALL = ("--channels", 1, "--epochs", 1, "--batch-size", 16)


@pytest.fixture(autouse=True)
def forget():
    """A function that forgets all plugins and what they registered; called at the end, too."""
    restore = snapshot()
    modules = set(sys.modules)

    def forget() -> None:
        restore()
        for name in set(sys.modules) - modules:
            if name.startswith(("plugin ", "own_package")):
                del sys.modules[name]

    yield forget
    forget()


@pytest.fixture
def plugin(tmp_path) -> Path:
    path = tmp_path / "mine.py"
    path.write_text(PLUGIN)
    return path


@pytest.fixture
def run(tmp_path, monkeypatch, capsys, forget):
    """A command as a process of its own would run it in the test's folder: (exit code, stdout, stderr)."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(warnings, "showwarning", warnings.showwarning)  # which the command line replaces

    def run(*words) -> tuple[int, str, str]:
        forget()
        capsys.readouterr()
        with pytest.raises(SystemExit) as stop:
            app.main([str(word) for word in words])
        return stop.value.code, *capsys.readouterr()

    return run


def test_what_a_file_registers_can_be_named(plugin, capsys, monkeypatch):
    monkeypatch.chdir(plugin.parent)
    plugin.rename("json.py")  # the name of another module does not matter
    import_plugins(["json.py", str(plugin.with_name("json.py"))])
    import_plugins(["json.py"])
    assert capsys.readouterr().out == "imported\n"
    assert "register_operation" not in vars(sys.modules["json"])
    assert str(get_space("own-space").candidates[-1]) == "own_conv@own_rule"
    assert len(get_space("own-space").candidates) == 23
    assert len(bf.load_dataset("own-data").labels) == 64
    layer = bf.nn.Linear(3, 2, rule="own_rule")
    assert torch.equal(layer.feedback_weight(), layer.weight / 2)


def test_module_by_dotted_name(tmp_path, monkeypatch, capsys):
    package = tmp_path / "own_package"
    package.mkdir()
    (package / "__init__.py").write_text("")
    (package / "mine.py").write_text(PLUGIN)
    monkeypatch.syspath_prepend(tmp_path)
    import_plugins(["own_package.mine"])
    import_plugins(["own_package.mine", str(package / "mine.py")])
    assert capsys.readouterr().out == "imported\n"
    assert "own_rule" in rules.names()
    with pytest.raises(InputError, match=r"'own_package\.yours': no module of that name is installed$"):
        import_plugins(["own_package.yours"])


@pytest.mark.parametrize(
    ("code", "message"),
    [
        ("\nx = 1 / 0", r"'bad\.py' raised ZeroDivisionError \(bad\.py, line 2\): division by zero"),
        ("import nothere", r"raised ModuleNotFoundError \(bad\.py, line 1\): No module named 'nothere'"),
        ("x = (", r"raised SyntaxError: .* \(bad\.py, line 1\)"),
        ("raise SystemExit('bye')", r"raised SystemExit \(bad\.py, line 1\): bye"),
        ("def f():\n    raise ValueError('a\\nb')\n\n\nf()", r"raised ValueError \(bad\.py, line 5\): a$"),
        (
            "import bionas_fast as bf\n\n\n@bf.rules.register\nclass A(bf.rules.Rule):\n    name = 'usf'",
            r"raised InputError \(bad\.py, line 4\): rule 'usf' is already registered by UniformSign",
        ),
    ],
    ids=["arithmetic", "import", "syntax", "exit", "function", "taken"],
)
def test_plugin_that_raises(tmp_path, monkeypatch, code, message):
    monkeypatch.chdir(tmp_path)
    Path("bad.py").write_text(code)
    before = set(sys.modules)
    for _ in range(2):
        with pytest.raises(InputError, match=message):
            import_plugins(["bad.py"])
    assert not any(name.startswith("plugin ") for name in set(sys.modules) - before)


def test_plugin_that_is_not_there(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match=rf"'mine\.py': no file '{tmp_path}/mine\.py'"):
        import_plugins(["mine.py"])
    with pytest.raises(InputError, match=r"'mine': no module of that name is installed$"):
        import_plugins(["mine"])
    Path("mine.py").touch()
    with pytest.raises(InputError, match=r"no module .*; to import the file, give mine\.py$"):
        import_plugins(["mine"])
    for name in ("", "a b", ".mine", "a..b", "folder/mine"):
        with pytest.raises(InputError, match=r"a module's name or a path that ends in \.py"):
            import_plugins([name])


def test_interruption_is_not_swallowed(tmp_path):
    (tmp_path / "slow.py").write_text("raise KeyboardInterrupt")
    with pytest.raises(KeyboardInterrupt):
        import_plugins([str(tmp_path / "slow.py")])


def test_names_are_not_taken_over(plugin, tmp_path):
    """Even by a definition that is called the same."""
    import_plugins([str(plugin)])
    (tmp_path / "second.py").write_text(PLUGIN)
    with pytest.raises(InputError, match="operation 'own_conv' is already registered by own_conv of plugin"):
        import_plugins([str(tmp_path / "second.py")])

    def bionas():
        return get_space("darts-bp")

    with pytest.raises(InputError, match="space 'bionas' is already registered"):
        register_space("bionas")(bionas)
    assert len(get_space("bionas").candidates) == 22


def test_python_imports_what_a_config_was_given(plugin, drawn, tmp_path):
    config = bf.SearchConfig(
        dataset="own-data",
        rules=("own_rule", "usf"),
        operations=("own_conv", "skip_connect"),
        channels=1,
        epochs=1,
        plugins=(str(plugin),),
    )
    assert "own_rule" not in rules.names()
    result = bf.search(config, out=tmp_path / "run")
    names = {str(edge.candidate) for cell in result.genotype.cells.values() for edge in cell.edges}
    assert names <= {f"{o}@{r}" for o in config.operations for r in config.rules}
    assert "plugins" not in config.settings()
    written = (tmp_path / "run" / "report.html").read_text()
    assert f"bionas-fast train {tmp_path / 'run'} --plugin {plugin}<" in written


def test_search_train_and_load_from_the_command_line(plugin, tmp_path, forked, run, forget):
    """A folder of pictures, an operation and a rule of one's own, from the search to the loaded network."""
    for i in range(60):
        path = tmp_path / "photos" / ("dark", "light")[i % 2] / f"{i}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        pixels = np.random.default_rng(i).integers(0, 128, (8, 8, 3)) + 127 * (i % 2)
        Image.fromarray(pixels.astype(np.uint8)).save(path)
    own = ("--dataset", "folder:photos", "--ops", "own_conv,skip_connect", "--rules", "own_rule,usf")
    done = forked("search", "--plugin", "mine.py", *own, *SMALL, "--out", "run", cwd=tmp_path)
    assert done.code == 0, done.stderr
    assert "imported" in done.stdout and "own_rule" in done.stdout
    assert "bionas-fast train run --plugin mine.py" in done.stdout
    written = yaml.safe_load(Path("run/config.yaml").read_text())
    assert written["plugins"] == ["mine.py"] and written["dataset"] == "folder:photos"

    # Nothing that a folder names is imported unasked; what is missing is said in one line.
    for words in (("train", "run"), ("show", "run"), ("search", "--config", "run/config.yaml")):
        code, stdout, stderr = run(*words)
        assert (code, stdout) == (2, "")
        assert "this run used the plugin mine.py" in stderr and "--plugin mine.py" in stderr
        assert len(stderr.splitlines()) == 1
    assert "own_conv" in run("show", "run", "--plugin", "mine.py")[1]

    code, _, stderr = run("train", "run", "--plugin", "mine.py", *SMALL, "--rule", "own_rule", "--out", "net")
    assert code == 0, stderr
    written = yaml.safe_load(Path("net/config.yaml").read_text())
    assert written["plugins"] == ["mine.py"] and written["dataset"] == "folder:photos"
    forget()
    with pytest.raises(InputError, match=r"unknown (operation 'own_conv'|rule 'own_rule').*plugins=\('mine\.py',\)"):
        bf.load("net")
    code, _, stderr = run("attack", "net")
    assert code == 2 and stderr.count("--plugin mine.py") == 1
    network = bf.load("net", plugins=["mine.py"])
    assert network.genotype.rules == ("own_rule",)
    assert network(torch.rand(2, 3, 8, 8)).shape == (2, 2)


def test_a_run_that_needs_no_name_of_its_plugin_needs_no_plugin(plugin, tmp_path, forget):
    config = bf.TrainConfig(dataset="own-data", channels=1, epochs=1, plugins=(str(plugin),))
    genotype = bf.Genotype.from_json(
        '{"format_version": 1, "normal": {"nodes": [["skip_connect@usf<-0"]]},'
        ' "reduce": {"nodes": [["max_pool_3x3<-1"]]}}'
    )
    bf.train(genotype, config, out=tmp_path / "net")
    forget()
    assert bf.load(tmp_path / "net").genotype == genotype
    assert "own_rule" not in rules.names()


def test_data_set_of_a_plugin_is_missed_by_its_name(plugin, run):
    few = ("--rules", "usf,brsf", "--ops", "dil_conv_3x3", *SMALL)
    code, _, stderr = run("search", "--plugin", "mine.py", "--dataset", "own-data", *few, "--out", "run")
    assert code == 0, stderr
    code, _, stderr = run("train", "run", *SMALL, "--out", "net")
    assert code == 2 and "unknown dataset 'own-data'" in stderr and "--plugin mine.py" in stderr
    assert not Path("net").exists()
    # Another dataset needs no plugin.
    assert run("train", "run", *SMALL, "--dataset", "digits", "--batch-size", 720)[0] == 0


@pytest.mark.parametrize("plugins", ["mine.py", {"mine": 1}, [3, "a\x1b[2J"], None])
def test_odd_notes_about_plugins_are_ignored(run, plugins):
    Path("odd.yaml").write_text(yaml.safe_dump({"rules": ["usff"], "plugins": plugins}))
    code, _, stderr = run("search", "--config", "odd.yaml")
    assert code == 2 and "'usff'" in stderr and "plugin" not in stderr


def test_doctor_lists_what_a_plugin_brings(plugin, run):
    code, stdout, _ = run("doctor", "--plugin", plugin)
    assert code == 0
    for name in ("own_rule", "own_conv", "own-space", "own-data", "Half of the weights"):
        assert name in stdout


def test_the_guides_searches_run(run):
    """Every search of these pages, on the plugins and data that they show, at the smallest size."""
    docs = Path(__file__).parents[1] / "docs"
    pages = [(docs / name).read_text() for name in ("user-operations.md", "user-data.md", "user-rules.md")]
    (added,), (arrays, stripes, _), (noisy, *_) = (
        re.findall(r"```python\n(.*?)```", page, re.DOTALL) for page in pages
    )
    for name, code in (("my_operations.py", added), ("stripes.py", stripes), ("noisy.py", noisy)):
        Path(name).write_text(code)
    exec(arrays, {})
    for i in range(20):
        Path("photos", "ab"[i % 2]).mkdir(parents=True, exist_ok=True)
        Image.new("L", (32, 32), i).save(Path("photos", "ab"[i % 2], f"{i}.png"))

    commands = [line for page in pages for line in re.findall("^bionas-fast search (.*)$", page, re.MULTILINE)]
    assert len(commands) == 7
    for i, words in enumerate(commands):
        data = () if "--dataset" in words else ("--dataset", "npz:noise.npz")
        code, _, stderr = run("search", *words.split(), *data, *SMALL, "--cells", 1, "--out", f"run{i}")
        assert code == 0, f"{words}: {stderr}"


METHOD = """
from bionas_fast.searching import SearchMethod, register_method


@register_method("fixed-alphas")
class FixedAlphas(SearchMethod):
    options = ("beta_decay",)
"""


def test_a_search_method(run, tmp_path):
    """Without a step of its own the alphas stay; settings that it does not name are refused."""
    (tmp_path / "method.py").write_text(METHOD)
    words = ("search", "--plugin", "method.py", "--method", "fixed-alphas", *SMALL, "--set", "train_fraction=0.05")
    code, _, stderr = run(*words, "--set", "beta_decay=1", "--out", "run")
    assert code == 0, stderr
    with np.load("run/alphas.npz") as alphas:
        assert np.array_equal(alphas["normal"][0], alphas["normal"][1])
    code, _, stderr = run(*words, "--set", "population=9")
    assert code == 2 and "population: method fixed-alphas has no use for it" in stderr
    code, _, stderr = run("search", "--method", "fixed-alphas")
    assert code == 2 and "unknown method 'fixed-alphas'" in stderr
    code, _, stderr = run("search", "--resume", "run")
    assert code == 2 and "--plugin method.py" in stderr
