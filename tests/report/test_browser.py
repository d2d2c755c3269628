"""The pages in a browser: they load from disk, without errors or requests, and can be read on a narrow screen."""

from __future__ import annotations

import html
import json
import re
import shutil
import subprocess

import numpy as np
import pytest
import torch

from bionas_fast.report import AttackTable, collect, write_comparison, write_report
from bionas_fast.runs.summary import RunFacts
from bionas_fast.space import get_space, random_genotype
from helpers.pages import layer_rows, write_attack, write_search, write_training

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on this machine")

#: Reads each page, in a frame of its own, after it has been laid out.
MEASURE = """
const found = {};
for (const frame of document.querySelectorAll("iframe")) {
  const page = frame.contentDocument, root = page.documentElement;
  const wide = [...page.querySelectorAll("*")].filter(
    e => e.scrollWidth > e.clientWidth + 1 && /auto|scroll/.test(frame.contentWindow.getComputedStyle(e).overflowX));
  found[frame.id] = {
    overflow: root.scrollWidth - root.clientWidth,
    figures: page.querySelectorAll("svg").length,
    named: [...page.querySelectorAll("svg")].filter(
      e => e.getAttribute("role") === "img" && e.getAttribute("aria-label").length > 10).length,
    drawn: [...page.querySelectorAll("figure svg")].filter(e => e.getBoundingClientRect().height > 50).length,
    smallest: Math.min(...[...page.querySelectorAll("figure svg")].filter(e => !e.closest("details")).flatMap(
      e => [...e.querySelectorAll("text")]).map(e => parseFloat(frame.contentWindow.getComputedStyle(e).fontSize)
        * e.getScreenCTM().a)),
    scrolled: wide.length,
    unreachable: wide.filter(e => e.tabIndex < 0).map(e => e.outerHTML.slice(0, 80)),
    requests: frame.contentWindow.performance.getEntriesByType("resource").map(e => e.name),
    dead: [...page.querySelectorAll('a[href^="#"]')].filter(
      e => !page.getElementById(e.getAttribute("href").slice(1))).length,
    background: frame.contentWindow.getComputedStyle(page.body).backgroundColor,
  };
}
document.body.textContent = JSON.stringify(found);
"""


def browse(path, *options):
    """Load a page from disk; return the document after its load event, and what the browser logged."""
    quiet = ("--headless", "--no-sandbox", "--disable-gpu", "--disable-background-networking", "--no-first-run")
    words = [CHROMIUM, *quiet, "--enable-logging=stderr", "--v=0", *options, "--dump-dom", path.as_uri()]
    profile = f"--user-data-dir={path.parent / 'profile'}"
    done = subprocess.run([*words[:-1], profile, words[-1]], capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout, done.stderr


@pytest.fixture(scope="module")
def pages(tmp_path_factory):
    """A search, a training with everything that it can have, and a comparison of both."""
    folder = tmp_path_factory.mktemp("pages")
    space = get_space("bionas")
    rng = np.random.default_rng(0)
    rows = [{"epoch": k, "train_loss": 1.0 / k, "valid_accuracy": 50.0 + k, "alpha_entropy": 3.0} for k in (1, 2)]
    alphas = {kind: rng.normal(size=(3, 14, 22)) for kind in ("normal", "reduce")}
    write_search(
        folder / "search", random_genotype(space, torch.Generator().manual_seed(0)), space, metrics=rows, alphas=alphas
    )
    confusion = (np.eye(10, dtype=int) * 7 + 1).tolist()
    write_training(folder / "net", confusion=confusion, layers=layer_rows())
    attacks = {"attack": AttackTable.read(write_attack(folder / "attack", {"net": (80.0, 30.0)}))}
    found = {name: folder / f"{name}.html" for name in ("search", "net", "both")}
    write_report(folder / "search", found["search"])
    write_report(folder / "net", found["net"], facts=RunFacts(shares={"usf": 0.9, "bp": 0.1}), attacks=attacks)
    named = {name: folder / name for name in ("search", "net")}
    write_comparison(found["both"], collect(named), title="Comparison", attacks=attacks)
    return found


@pytest.fixture(scope="module")
def measured(pages):
    """The measures of every page at every width, by page and width; and what the browser logged."""
    frames = "".join(
        f'<iframe id="{name} {width}" style="width: {width}px; height: 900px; border: 0" '
        f'srcdoc="{html.escape(page.read_text(encoding="utf-8"))}"></iframe>'
        for name, page in pages.items()
        for width in (400, 1400)
    )
    wrapper = pages["both"].with_name("wrapper.html")
    wrapper.write_text(
        f'<!doctype html><body onload="measure()">{frames}<script>function measure() {{{MEASURE}}}</script>'
    )
    document, log = browse(wrapper)
    return json.loads(html.unescape(re.search(r"<body[^>]*>(\{.*\})", document, re.DOTALL)[1])), log


def test_loads_from_disk_without_errors(pages):
    document, log = browse(pages["both"])
    assert document.count("<svg") == pages["both"].read_text(encoding="utf-8").count("<svg") > 5
    assert "CONSOLE" not in log


def test_no_page_scrolls_sideways(measured):
    assert {name: own["overflow"] for name, own in measured[0].items()} == dict.fromkeys(measured[0], 0)
    assert all(own["scrolled"] for name, own in measured[0].items() if name.endswith(" 400"))


def test_figures_are_drawn_and_named(measured):
    # Cells and shares, α by rule and by operation, curves; weights, curves, gradients, alignment, gaps, ε; and so on.
    least = {"search": 5, "net": 6, "both": 9}
    for name, own in measured[0].items():
        assert own["figures"] == own["named"] >= least[name.split()[0]]
        assert own["drawn"] >= own["figures"] - 2  # cells of a comparison are folded


def test_text_of_figures_can_be_read_on_a_narrow_screen(measured):
    assert all(own["smallest"] >= 7.5 for own in measured[0].values()), measured[0]


def test_keyboard(measured):
    assert [own["unreachable"] for own in measured[0].values()] == [[]] * len(measured[0])
    assert [own["dead"] for own in measured[0].values()] == [0] * len(measured[0])


def test_nothing_is_requested(measured):
    found, log = measured
    assert [own["requests"] for own in found.values()] == [[]] * len(found)
    assert "CONSOLE" not in log


def test_dark(pages, measured):
    """The scheme of the system decides."""
    document = pages["net"].read_text(encoding="utf-8")
    assert {own["background"] for own in measured[0].values()} == {"rgb(255, 255, 255)"}
    dark = pages["net"].with_name("dark.html")
    script = "<script>onload = () => document.title = getComputedStyle(document.body).backgroundColor</script>"
    dark.write_text(document.replace("</head>", f"{script}</head>"), encoding="utf-8")
    shown, _ = browse(dark, "--blink-settings=preferredColorScheme=0")
    assert "<title>rgb(21, 24, 29)</title>" in shown
