"""Everything that a GPU can show, within minutes: ``python benchmarks/gpu_day.py`` in the root of the repository.

    python benchmarks/gpu_day.py [--minutes 8] [--out FOLDER] [--device cpu|cuda] [--dry-run]

Each section of gpu_sections.py runs in a process of its own, with its share of the time. Its rows are written as they
come, to FOLDER/gpu-day.json and FOLDER/gpu-day.md: whatever ends a section or the whole, no earlier row is lost. The
exit code is 0 if every section came to its end, or was cut by the time, and found nothing wrong.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import shlex
import signal
import sys
import threading
import time
import traceback
from datetime import datetime
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "benchmarks")]
os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")

try:
    import gpu_sections
except ImportError as missing:
    sys.exit(f"error: {missing}; docs/gpu.md says how to fetch missing packages beforehand")

#: Seconds that a section has to end by itself before it is ended.
GRACE = 2.0


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    options.add_argument("--minutes", type=float, default=8.0, help="time for all sections")
    options.add_argument("--out", type=Path, default=Path("gpu-day"), help="folder of the results")
    options.add_argument("--device", choices=("cpu", "cuda"), default="cuda")
    options.add_argument("--dry-run", action="store_true", help="tiny sizes, to try the program itself")
    options.add_argument("--sections", default=",".join(gpu_sections.SHARES), help="names, separated by commas")
    given = options.parse_args()
    names = given.sections.split(",")
    if "machine" in gpu_sections.SHARES and "machine" not in names:
        names.insert(0, "machine")  # figures without a card's name say nothing
    if unknown := set(names) - set(gpu_sections.SHARES):
        options.error(f"--sections: unknown: {', '.join(sorted(unknown))}; known: {', '.join(gpu_sections.SHARES)}")
    if given.minutes <= 0:
        options.error(f"--minutes: expected more than 0, got {given.minutes:g}")
    given.out.mkdir(parents=True, exist_ok=True)
    results = {
        "command": shlex.join([Path(sys.executable).name, *sys.argv]),
        "started": datetime.now().astimezone().isoformat(sep=" ", timespec="seconds"),
        "minutes": given.minutes,
        "device": given.device,
        "dry run": given.dry_run,
        "sections": [],
    }
    end = time.monotonic() + 60 * given.minutes
    for number, name in enumerate(names):
        shares = [gpu_sections.SHARES[other] for other in names[number:]]
        seconds = max(0.0, end - time.monotonic()) * shares[0] / sum(shares)
        section = {"name": name, "status": "running", "seconds": 0.0, "reason": "", "rows": []}
        results["sections"].append(section)
        print(f"{name} (at most {seconds:.0f} s)", flush=True)
        day = gpu_sections.Day(given.device, given.dry_run, time.monotonic() + seconds)
        run_section(section, day, results, given.out)
        print(f"    {section['status']} after {section['seconds']:.1f} s", flush=True)
    wrong = [section["name"] for section in results["sections"] if section["status"] in ("failed", "found faults")]
    print(f"{given.out / 'gpu-day.md'}: {'wrong: ' + ', '.join(wrong) if wrong else 'nothing wrong was found'}")
    sys.exit(1 if wrong else 0)


def run_section(section: dict[str, Any], day: gpu_sections.Day, results: dict[str, Any], folder: Path) -> None:
    """Run a section in a forked process, which inherits what was imported, and take down its rows."""
    begun = time.monotonic()
    ours, theirs = multiprocessing.Pipe(duplex=False)
    process = multiprocessing.get_context("fork").Process(target=work, args=(section["name"], day, ours, theirs))
    process.start()
    theirs.close()
    status, reason = "out of time", ""
    while ours.poll(max(0.0, day.left() + GRACE)):
        try:
            kind, content = ours.recv()
        except EOFError:
            process.join()
            status, reason = "failed", f"the process ended with exit code {process.exitcode}"
            break
        if kind != "row":
            status, reason = kind, content
            break
        section["rows"].append(content)
        section["seconds"] = round(time.monotonic() - begun, 1)
        write(results, folder)
        print("    " + ", ".join(f"{key} {shown(value)}" for key, value in content.items() if key != "all"), flush=True)
    end_process(process)
    if status == "done" and any(row.get("status") == "failed" for row in section["rows"]):
        status = "found faults"
    section |= {"status": status, "reason": reason, "seconds": round(time.monotonic() - begun, 1)}
    if reason:
        print(reason, flush=True)
    write(results, folder)


def work(name: str, day: gpu_sections.Day, others: Connection, pipe: Connection) -> None:
    """Run a section, in its process; what it starts belongs to the process group that is ended with it."""
    others.close()
    os.setsid()
    threading.Thread(target=end_with_the_program, daemon=True).start()
    try:
        for row in getattr(gpu_sections, name)(day):
            pipe.send(("row", row))
            if day.left() <= 0:
                pipe.send(("out of time", ""))
                return
        pipe.send(("done", ""))
    except BaseException:
        pipe.send(("failed", traceback.format_exc(limit=-12)))


def end_with_the_program() -> None:
    """End this process group when the program that started it has ended, however that was."""
    program = multiprocessing.parent_process()
    assert program is not None
    wait([program.sentinel])
    os.killpg(0, signal.SIGKILL)


def end_process(process: multiprocessing.Process) -> None:
    """End a process that has not ended by itself, and all that it has started."""
    process.join(GRACE)
    if process.is_alive():
        try:
            os.killpg(process.pid, signal.SIGKILL)
        except (ProcessLookupError, PermissionError):
            process.kill()
        process.join()


def write(results: dict[str, Any], folder: Path) -> None:
    """Write the results; a file is replaced as a whole."""
    texts = {"gpu-day.json": json.dumps(results, indent=1, ensure_ascii=False), "gpu-day.md": markdown(results)}
    for name, text in texts.items():
        fresh = folder / f"{name}.new"
        fresh.write_text(text, encoding="utf-8")
        fresh.replace(folder / name)


def markdown(results: dict[str, Any]) -> str:
    """Format the results as a page: a table per section."""
    lines = ["# Measurements on a GPU", "", f"`{results['command']}`, {results['started']}"]
    lines += ["", "**Dry run: tiny sizes, no measurement.**"] if results["dry run"] else []
    for section in results["sections"]:
        lines += ["", f"## {section['name']}", "", f"{section['status']}, {section['seconds']} s"]
        rows = [{key: value for key, value in row.items() if key != "all"} for row in section["rows"]]
        columns = list(dict.fromkeys(key for row in rows for key in row))
        if columns:
            lines += ["", f"| {' | '.join(columns)} |", f"|{'---|' * len(columns)}"]
        for row in rows:
            cells = (shown(row.get(column, "")).replace("|", "\\|").replace("\n", " ") for column in columns)
            lines.append(f"| {' | '.join(cells)} |")
        if section["reason"]:
            lines += ["", "```", section["reason"].strip(), "```"]
    return "\n".join(lines) + "\n"


def shown(value: object) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


if __name__ == "__main__":
    main()
