"""A headless Chromium, driven by its own protocol, and a real small run whose pages it opens."""

from __future__ import annotations

import base64
import json
import os
import shutil
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import websocket

CHROMIUM = ("chromium", "chromium-browser", "google-chrome")
QUIET = [
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync"),
    *("--disable-background-networking", "--disable-component-update", "--disable-dev-shm-usage", "--hide-scrollbars"),
    "--remote-debugging-port=0",
]
"""Without the background-networking flags Chromium looks for hosts that a closed network does not have."""
START_SECONDS = 60.0

MEASURE = (Path(__file__).parent / "measure.js").read_text(encoding="utf-8")

STUDY = """\
name: pages
title: Two rates, in seconds
question: Which learning rate is better in seconds, and can the page that says so be read?
data:
  corpus: {{source: files, path: {corpus}}}
  vocab_size: 300
config:
  model: {{d_model: 16, n_layers: 1, n_heads: 2, d_ff: 32}}
  data: {{sequence_length: 32}}
  optimizer: {{learning_rate: 1e-3}}
  batch: {{sequences: 4}}
  evaluation: {{every_steps: 4, sequences: 4, batch_sequences: 4}}
  checkpoint: {{every_steps: 4}}
  runtime: {{device: cpu, precision: fp32, compile: never, threads: 1}}
design: one_at_a_time
axes:
  rate: {{field: optimizer.learning_rate, values: [1e-3, 3e-3, 1e-2]}}
  width: {{field: model.d_ff, values: [32, 64]}}
stages:
  ranking:
    budget: {{steps: 12}}
    resources: {{parallel: 2}}
    price: {{usd_per_gpu_hour: 1, minutes_per_run: 1}}
    promotion: {{policy: top_per_axis}}
  proof:
    budget: {{steps: 16}}
    seeds: 2
    proof: true
    resources: {{parallel: 2}}
    price: {{usd_per_gpu_hour: 1, minutes_per_run: 1}}
    promotion: {{policy: best_mean}}
shakedown: {{steps: 4}}
evaluation: {{smallbench: null}}
budget: {{usd: 10}}
"""

MARKDOWN_PAGE = """<!doctype html><html lang="en"><head><meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1"><title>{title}</title>
<style>body {{ font: 14px/1.5 Roboto, Arial, sans-serif; margin: 16px; overflow-wrap: anywhere }}
table {{ display: block; overflow-x: auto; border-collapse: collapse; white-space: nowrap; font-size: 13px }}
td, th {{ border: 1px solid #ccc; padding: 4px 8px; text-align: left }}</style></head><body>{body}</body></html>"""


class Page:
    """A tab of the browser, over its DevTools protocol."""

    def __init__(self, address: str, width: int, height: int = 900) -> None:
        request = urllib.request.Request(f"{address}/json/new?about:blank", method="PUT")
        with urllib.request.urlopen(request, timeout=20) as answer:
            target = json.load(answer)
        self._socket = websocket.create_connection(
            target["webSocketDebuggerUrl"], timeout=60, suppress_origin=True, enable_multithread=False
        )
        self._number = 0
        self.width = width
        self.events: list[dict[str, Any]] = []
        for domain in ("Page", "Runtime", "Network", "Log"):
            self.ask(f"{domain}.enable")
        self._size(height)

    def ask(self, method: str, **parameters: Any) -> dict[str, Any]:
        """Send a command and wait for its answer; what happens meanwhile goes to `events`."""
        self._number += 1
        self._socket.send(json.dumps({"id": self._number, "method": method, "params": parameters}))
        while True:
            said = json.loads(self._socket.recv())
            if said.get("id") == self._number:
                assert "error" not in said, (method, said)
                return said.get("result", {})
            self.events.append(said)

    def open(self, path: Path) -> None:
        """Load a file and wait until it is drawn."""
        self.ask("Page.navigate", url=path.as_uri())
        deadline = time.monotonic() + START_SECONDS
        while not any(event["method"] == "Page.loadEventFired" for event in self.events):
            assert time.monotonic() < deadline, "the page does not load"
            self.evaluate("1")
        self.evaluate("document.fonts.ready.then(() => new Promise(done => requestAnimationFrame(done)))")

    def evaluate(self, expression: str) -> Any:
        """The value of a JavaScript expression, awaited."""
        found = self.ask("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in found, found
        return found["result"].get("value")

    def measure(self) -> dict[str, Any]:
        """What `measure.js` finds of the page as it is drawn now, every fold open."""
        return self.evaluate(f"({MEASURE})()")

    def problems(self) -> list[str]:
        """Errors of scripts, and whatever the browser complains of."""
        found = [event["params"] for event in self.events if event["method"] == "Runtime.exceptionThrown"]
        logged = [event["params"]["entry"] for event in self.events if event["method"] == "Log.entryAdded"]
        return [json.dumps(each) for each in [*found, *(entry for entry in logged if entry["level"] == "error")]]

    def remote(self) -> list[str]:
        """Addresses of everything that was asked for and is neither this file nor in it."""
        asked = [
            each["params"]["request"]["url"] for each in self.events if each["method"] == "Network.requestWillBeSent"
        ]
        return [url for url in asked if not url.startswith(("file:", "data:", "about:"))]

    def screenshot(self, path: Path) -> None:
        """The whole page as a PNG."""
        size = self.ask("Page.getLayoutMetrics")["cssContentSize"]
        self._size(int(min(size["height"], 16_000)))
        shot = self.ask("Page.captureScreenshot", format="png", captureBeyondViewport=True)
        path.write_bytes(base64.b64decode(shot["data"]))

    def close(self) -> None:
        self._socket.close()

    def _size(self, height: int) -> None:
        # not `mobile`: a phone's browser would shrink a page that is too wide instead of scrolling it
        self.ask(
            "Emulation.setDeviceMetricsOverride", width=self.width, height=height, deviceScaleFactor=1, mobile=False
        )


@pytest.fixture(scope="session")
def chromium(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of a browser's DevTools."""
    program = next((found for name in CHROMIUM if (found := shutil.which(name))), None)
    assert program is not None, "no Chromium here: the cluster's set-up installs Debian's"
    profile = tmp_path_factory.mktemp("chromium")
    with (profile / "log").open("wb") as log:
        process = subprocess.Popen(
            [program, *QUIET, f"--user-data-dir={profile}", "about:blank"], stdout=log, stderr=subprocess.STDOUT
        )
    port = profile / "DevToolsActivePort"
    deadline = time.monotonic() + START_SECONDS
    while not (port.exists() and port.read_text().strip()):
        assert process.poll() is None, (profile / "log").read_text()
        assert time.monotonic() < deadline, (profile / "log").read_text()
        time.sleep(0.05)
    yield f"http://127.0.0.1:{port.read_text().splitlines()[0]}"
    process.terminate()
    try:
        process.wait(20)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


@pytest.fixture
def open_page(chromium: str) -> Iterator[Any]:
    """Opens a file at a width; the tab is closed at the test's end."""
    pages: list[Page] = []

    def make(path: Path, width: int) -> Page:
        pages.append(Page(chromium, width))
        pages[-1].open(path)
        return pages[-1]

    yield make
    for page in pages:
        page.close()


@pytest.fixture(scope="session")
def finished_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a real run, from data to registered champion, and its pages in `pages/`."""
    given = os.environ.get("PODIUM_PAGES_RUN")
    if given:
        return _pages(Path(given), tmp_path_factory.mktemp("pages"))
    folder = tmp_path_factory.mktemp("run")
    sentences = (f"The {word} of chapter {n} says {n * 7} things.\n" for n in range(1500) for word in ("cat", "hen"))
    (folder / "corpus.txt").write_text("".join(sentences))
    (folder / "pages.yaml").write_text(STUDY.format(corpus=folder / "corpus.txt"))
    command = [sys.executable, "-c", "from podium.pipelines.cli.main import main; main()"]
    # a server that MLflow was told of by a test before this one is gone
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("MLFLOW_", "PODIUM_"))}
    done = subprocess.run(
        [*command, "run", str(folder / "pages.yaml"), "--store", str(folder / "store")],
        capture_output=True,
        text=True,
        env={**kept, "OMP_NUM_THREADS": "1"},
        cwd=folder,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    (run,) = (path.parent for path in (folder / "store" / "runs").glob("*/study.yaml"))
    return _pages(run, folder / "pages")


def _pages(run: Path, folder: Path) -> Path:
    """The pages that a person reads of a run: the report, each verdict and the gate, as Kubeflow's UI renders them."""
    from markdown_it import MarkdownIt

    from podium.components.shakedown.step import gate_page
    from podium.components.study.run import Run
    from podium.components.study.verdict import to_markdown

    folder.mkdir(exist_ok=True)
    opened = Run.open(str(run.parent.parent), run.name)
    texts = {stage: to_markdown(verdict) for stage in opened.stages if (verdict := opened.verdict(stage)) is not None}
    texts["shakedown"] = gate_page(opened.id, opened.store_uri)
    renderer = MarkdownIt("commonmark").enable("table")
    for name, text in texts.items():
        page = MARKDOWN_PAGE.format(title=name, body=renderer.render(text))
        (folder / f"verdict-{name}.html").write_text(page, encoding="utf-8")
    shutil.copy(run / "report" / "index.html", folder / "report.html")
    return folder
