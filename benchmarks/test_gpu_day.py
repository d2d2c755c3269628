"""The program of measurements on a GPU: it runs on the CPU, and whatever ends a section costs no other row."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

import gpu_day
import gpu_sections


def ran(monkeypatch: pytest.MonkeyPatch, folder: Path, *words: str) -> tuple[int, dict, str]:
    """Run the program in this process; return the exit code and both files."""
    monkeypatch.setattr(sys, "argv", ["gpu_day.py", "--device", "cpu", "--dry-run", "--out", str(folder), *words])
    with pytest.raises(SystemExit) as end:
        gpu_day.main()
    return end.value.code, json.loads((folder / "gpu-day.json").read_text()), (folder / "gpu-day.md").read_text()


def test_sections_that_fail_die_or_hang_cost_no_other_row(monkeypatch, tmp_path):
    def fails(day):
        yield {"number": 1}
        raise ValueError("not this one")

    def dies(day):
        yield {"number": 2}
        os.kill(os.getpid(), signal.SIGKILL)

    def hangs(day):
        yield {"number": 3}
        time.sleep(300)

    def finds(day):
        yield {"number": 4, "status": "failed"}

    def works(day):
        yield {"number": 5.25, "text": "a|b"}

    made = {one.__name__: one for one in (fails, dies, hangs, finds, works)}
    for name, section in made.items():
        monkeypatch.setattr(gpu_sections, name, section, raising=False)
    monkeypatch.setattr(gpu_sections, "SHARES", dict.fromkeys(made, 1))
    monkeypatch.setattr(gpu_day, "GRACE", 0.2)
    begun = time.monotonic()
    code, found, page = ran(monkeypatch, tmp_path, "--minutes", "0.1")
    assert time.monotonic() - begun < 60
    assert code == 1
    sections = {section["name"]: section for section in found["sections"]}
    status = {name: section["status"] for name, section in sections.items()}
    assert status == {
        "fails": "failed", "dies": "failed", "hangs": "out of time", "finds": "found faults", "works": "done"
    }  # fmt: skip
    assert [section["rows"][0]["number"] for section in found["sections"]] == [1, 2, 3, 4, 5.25]
    assert "ValueError: not this one" in sections["fails"]["reason"]
    assert "exit code -9" in sections["dies"]["reason"]
    assert "ValueError: not this one" in page
    assert "| 5.25 | a\\|b |" in page


def test_results_are_there_before_the_end(monkeypatch, tmp_path):
    def rows(day):
        yield {"number": 1}
        while not (tmp_path / "gpu-day.md").exists():
            time.sleep(0.01)
        yield {"seen": json.loads((tmp_path / "gpu-day.json").read_text())["sections"][0]["rows"]}

    monkeypatch.setattr(gpu_sections, "machine", rows)
    code, found, _ = ran(monkeypatch, tmp_path, "--sections", "machine")
    assert code == 0
    assert found["sections"][0]["rows"][1] == {"seen": [{"number": 1}]}


HANGING = """
import sys, time
sys.argv = ["gpu_day.py", "--device", "cpu", "--out", sys.argv[1], "--sections", "machine"]
import gpu_day, gpu_sections
def machine(day):
    import os, subprocess
    other = subprocess.Popen(["sleep", "300"])
    yield {"pids": [os.getpid(), other.pid]}
    time.sleep(300)
gpu_sections.machine = machine
gpu_day.main()
"""


def test_no_section_outlives_the_program(tmp_path):
    folder = Path(gpu_day.__file__).parent
    program = subprocess.Popen([sys.executable, "-c", HANGING, str(tmp_path)], cwd=folder, stdout=subprocess.PIPE)
    assert program.stdout is not None
    while b"pids" not in (line := program.stdout.readline()):
        assert line
    program.kill()
    program.wait()
    pids = json.loads((tmp_path / "gpu-day.json").read_text())["sections"][0]["rows"][0]["pids"]
    end = time.monotonic() + 60
    while any(alive(pid) for pid in pids):
        assert time.monotonic() < end
        time.sleep(0.05)


def alive(pid: int) -> bool:
    """Whether a process runs; one that has ended may wait to be collected."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


@pytest.mark.parametrize("words", [("--sections", "nothing"), ("--minutes", "0")], ids=["section", "minutes"])
def test_wrong_words_are_refused(monkeypatch, tmp_path, words):
    monkeypatch.setattr(sys, "argv", ["gpu_day.py", "--out", str(tmp_path / "new"), *words])
    with pytest.raises(SystemExit) as end:
        gpu_day.main()
    assert end.value.code == 2
    assert not (tmp_path / "new").exists()


@pytest.mark.slow
def test_dry_run_on_the_cpu(tmp_path):
    """Every section, as it is started on a bare machine."""
    root = Path(gpu_day.__file__).parents[1]
    words = ["--device", "cpu", "--dry-run", "--minutes", "60", "--out", str(tmp_path)]
    others = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run(
        [sys.executable, "benchmarks/gpu_day.py", *words], cwd=root, env=others, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout[-5000:] + done.stderr[-2000:]
    found = json.loads((tmp_path / "gpu-day.json").read_text())
    assert [section["name"] for section in found["sections"]] == list(gpu_sections.SHARES)
    for section in found["sections"]:
        assert section["status"] == "done", section
        assert section["rows"], section["name"]
    rows = {section["name"]: section["rows"] for section in found["sections"]}
    assert {row.get("engine") for row in rows["search_steps"]} == {"both", "stacked", "modular"}
    assert all(row["ms"] > 0 for name in ("compiled", "layers", "hebbian", "loader") for row in rows[name])
    assert "Dry run" in (tmp_path / "gpu-day.md").read_text()
