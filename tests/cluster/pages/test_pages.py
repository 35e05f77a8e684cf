"""The pages that a person reads, in a browser: they need no script and nothing remote, and can be read at any width."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

pytestmark = pytest.mark.cluster

PAGES = ("report", "verdict-ranking", "verdict-proof", "verdict-shakedown")
WIDTHS = (1280, 400)
SHOTS = "PODIUM_SCREENSHOTS"
"""Environment: a folder for pictures of every page, to look at."""


@pytest.fixture(params=[(name, width) for name in PAGES for width in WIDTHS], ids=lambda each: f"{each[0]}-{each[1]}")
def page(request, finished_run, open_page):
    name, width = request.param
    found = open_page(finished_run / f"{name}.html", width)
    yield found
    if os.environ.get(SHOTS):
        found.screenshot(Path(os.environ[SHOTS]) / f"{name}-{width}.png")


def test_a_page_can_be_read_at_any_width_and_loads_nothing(page):
    found = page.measure()
    assert page.problems() == []
    assert page.remote() == []
    assert found["texts"] > 10, "nothing was drawn"
    assert found["width"] == page.width
    assert found["scrollWidth"] <= page.width, found["wide"]
    assert found["overlaps"] == []
    assert found["small"] == []


BROKEN = """<!doctype html><html><body style="margin:0"><p style="font-size:11px">too small</p>
<p style="position:absolute;top:0;left:0">one over</p><div style="width:3000px">wide</div>
<img src="http://127.0.0.1:9/x.png"><script>throw new Error("a script's error")</script></body></html>"""


def test_the_measure_finds_what_it_looks_for(tmp_path, open_page):
    (tmp_path / "broken.html").write_text(BROKEN)
    page = open_page(tmp_path / "broken.html", 400)
    found = page.measure()
    assert any("a script's error" in problem for problem in page.problems())
    assert page.remote() == ["http://127.0.0.1:9/x.png"]
    assert found["scrollWidth"] >= 3000
    assert [each["text"] for each in found["small"]] == ["too small"]
    assert any({each["a"], each["b"]} == {"too small", "one over"} for each in found["overlaps"])
