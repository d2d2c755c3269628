"""Sessions in environments of their own: ``nox -s oldest`` runs the tests with the oldest supported releases."""

import nox

nox.options.sessions = ["oldest"]

#: The lower bounds of pyproject.toml. The interpreter of Triton 3.6 does not work with numpy 2.4.
OLDEST = ["torch==2.11.*", "torchvision==0.26.*", "triton==3.6.*", "numpy<2.4"]


@nox.session
def oldest(session: nox.Session) -> None:
    """Run the tests, or those given after ``--``."""
    session.install("-e", ".[test]", *OLDEST)
    session.run("pytest", *(session.posargs or ["-n", "auto", "--dist", "worksteal"]))
