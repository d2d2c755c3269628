"""Sessions in environments of their own; arguments after ``--`` go to pytest or to the program of the session.

``nox -s oldest`` runs the tests with the oldest supported releases, ``nox --list`` names the other sessions.
"""

import os
from pathlib import Path

import nox

nox.options.sessions = ["oldest", "docs"]

#: The lower bounds of pyproject.toml. The interpreter of Triton 3.6 does not work with numpy 2.4.
OLDEST = ["torch==2.11.*", "torchvision==0.26.*", "triton==3.6.*", "numpy<2.4"]
TESTS = ["-n", "auto", "--dist", "worksteal"]
#: The kernels as programs of the host, without PyTorch, under the address, undefined-behaviour and thread sanitizers.
SANITIZED = [
    "tests/native/test_feedback_kernels.py::test_under_a_sanitizer",
    "tests/kernels/test_hebbian_cuda.py::test_kernels_are_the_reference",
]
EXTRAS = nox.project.load_toml("pyproject.toml")["project"]["optional-dependencies"]


@nox.session(python=["3.10", "3.11", "3.12", "3.13"])
def tests(session: nox.Session) -> None:
    """Run the tests with the newest releases, or those given."""
    session.install("-e", ".[test]")
    session.run("pytest", *(session.posargs or TESTS))


@nox.session
def oldest(session: nox.Session) -> None:
    """Run the tests with the oldest supported releases, or those given."""
    session.install("-e", ".[test]", *OLDEST)
    session.run("pytest", *(session.posargs or TESTS))


@nox.session
def lint(session: nox.Session) -> None:
    """Run the linters."""
    session.install("-e", ".[test]")
    session.run("ruff", "check")
    session.run("ruff", "format", "--check")
    session.run("mypy")
    session.run("lint-imports", "--no-logo")


@nox.session
def docs(session: nox.Session) -> None:
    """Build the site into site/, from the sources alone. ``nox -s docs -- serve`` shows it."""
    session.install(*EXTRAS["docs"])
    session.run("mkdocs", *(session.posargs or ["build", "--strict"]))


@nox.session
def examples(session: nox.Session) -> None:
    """Run all examples, also those that need Lightning and Optuna."""
    session.install("-e", ".[test,examples]")
    session.run("pytest", "tests/test_examples.py", *session.posargs)


@nox.session
def benchmarks(session: nox.Session) -> None:
    """Run the benchmarks, or those given. The machine should be idle."""
    session.install("-e", ".[test]")
    session.run("pytest", *(session.posargs or ["benchmarks/"]), "--benchmark-only")


@nox.session
def sanitizers(session: nox.Session) -> None:
    """Run the kernels under sanitizers, and call the compiled operators with mismatched arguments under them."""
    session.install("-e", ".[test]")
    session.run("pytest", *SANITIZED, "-n", "auto", *session.posargs)
    session.run("python", "benchmarks/fuzz_operators.py", "--sanitize")


@nox.session
def coverage(session: nox.Session) -> None:
    """Run the tests, or those given, and report the lines of Python that none of them reaches."""
    session.install("-e", ".[test]", "coverage[toml]")
    session.env["COVERAGE_PROCESS_START"] = os.path.abspath("pyproject.toml")
    session.run("coverage", "run", "-m", "pytest", "-n", "0", *session.posargs)
    session.run("coverage", "combine")
    session.run("coverage", "report")


@nox.session
def package(session: nox.Session) -> None:
    """Build the wheel and the sdist into dist/, check their metadata, and use the wheel in this environment."""
    session.install("build", "twine")
    session.run("python", "-m", "build")
    made = sorted(str(path) for path in Path("dist").iterdir())
    session.run("twine", "check", "--strict", *made)
    session.install(*(path for path in made if path.endswith(".whl")))
    session.run("bionas-fast", "doctor")
