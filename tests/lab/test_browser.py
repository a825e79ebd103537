"""The explorer in a real browser: JupyterLab on the loopback, Chromium of the system, and a person's clicks and keys.

Skipped where there is no Chromium (or none that PATHOLIB_CHROMIUM names) or the extra `browser` is not installed.
PATHOLIB_SCREENSHOTS names a folder for pictures of what was seen.
"""

from __future__ import annotations

import contextlib
import importlib.util
import io
import json
import os
import re
import secrets
import shutil
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

import numpy as np
import pytest
import several
from PIL import Image

from patholib.base import files
from patholib.data import demo
from patholib.study import Study

ROOT = Path(__file__).parents[2]
CHROMIUM = os.environ.get("PATHOLIB_CHROMIUM") or next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None
)
LACKING = [
    what
    for what, there in (
        ("Chromium (apt-get install chromium)", CHROMIUM),
        ("the extra `browser` (playwright)", importlib.util.find_spec("playwright")),
        ("the extra `notebooks` (jupyterlab)", importlib.util.find_spec("jupyterlab")),
    )
    if not there
]
pytestmark = pytest.mark.skipif(bool(LACKING), reason=f"not installed: {', '.join(LACKING)}")

PATIENCE = 90_000  # milliseconds, for a kernel that imports torch beside other work

# Widgets that lie upon each other or reach out of the explorer, by the CSS class that is their handle.
OVERLAPS = """() => {
  const root = document.querySelector('.patho-explorer').getBoundingClientRect();
  const parts = [...document.querySelectorAll('.patho-explorer [class*="patho-"]')].filter(e => e.clientHeight > 0);
  const named = parts.map(e => [[...e.classList].find(c => c.startsWith('patho-')), e.getBoundingClientRect()]);
  const found = named.filter(([, r]) => r.right > root.right + 1 || r.left < root.left - 1).map(([n]) => n + ' is cut');
  named.forEach(([a, r], i) => named.slice(i + 1).forEach(([b, s]) => {
    const wide = Math.min(r.right, s.right) - Math.max(r.left, s.left);
    const high = Math.min(r.bottom, s.bottom) - Math.max(r.top, s.top);
    if (wide > 1 && high > 1) found.push(a + ' on ' + b);
  }));
  return found;
}"""


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with the notebook, a few demo images, and a finished run on them."""
    root = tmp_path_factory.mktemp("browser")
    with pytest.MonkeyPatch.context() as patch:
        few = {"groups": 18, "images_per_group": 4, "size": (140, 92)}
        patch.setitem(demo.DEFAULTS, "breakhis", demo.DEFAULTS["breakhis"] | few)
        patch.setattr(files, "project_root", lambda: root)
        patch.delenv("PATHOLIB_DATA", raising=False)
        patch.setenv("PATHOLIB_CACHE", str(root / "cache"))
        with contextlib.redirect_stdout(io.StringIO()):
            Study.demo_run(root / "runs")
    (root / "notebooks").mkdir()
    shutil.copy(ROOT / "notebooks" / "explorer.ipynb", root / "notebooks")
    noise = np.random.default_rng(0).integers(0, 256, (90, 120, 3), dtype=np.uint8)
    Image.fromarray(noise).save(root / "mine.png")
    (root / "broken.png").write_bytes((root / "mine.png").read_bytes()[:500])
    return root


@pytest.fixture(scope="module")
def address(place):
    """JupyterLab with settings of its own, at a free port of the loopback; ended afterwards."""
    for name, settings in (
        ("apputils-extension/notification", {"fetchNews": "false"}),  # no question, no network
        ("notebook-extension/tracker", {"windowingMode": "none"}),
    ):  # cells out of sight count too
        path = place / "settings" / "@jupyterlab" / f"{name}.jupyterlab-settings"
        path.parent.mkdir(parents=True)
        path.write_text(json.dumps(settings))
    port = several.free_port()
    token = secrets.token_hex(16)
    env = (
        os.environ
        | {
            "PATHOLIB_OUTPUTS": str(place / "runs"),
            "PATHOLIB_CACHE": str(place / "cache"),
            "PATHOLIB_DATA": str(place / "data" / "demo" / "breakhis"),
            "OMP_WAIT_POLICY": "passive",
            "TQDM_DISABLE": "1",
            "PYTHONPATH": os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")])),
            "JUPYTERLAB_SETTINGS_DIR": str(place / "settings"),
            "JUPYTERLAB_WORKSPACES_DIR": str(place / "workspaces"),
        }
        | {f"JUPYTER_{name}_DIR": str(place / name.lower()) for name in ("CONFIG", "DATA", "RUNTIME")}
    )
    with (place / "lab.log").open("wb") as log:
        server = subprocess.Popen(
            [
                sys.executable,
                "-m",
                "jupyter",
                "lab",
                "--no-browser",
                "--allow-root",
                "--ip=127.0.0.1",
                f"--port={port}",
                "--ServerApp.port_retries=0",
                f"--IdentityProvider.token={token}",
                "--LabApp.check_for_updates_class=jupyterlab.NeverCheckForUpdate",
            ],
            cwd=place / "notebooks",
            env=env,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
        )
    try:
        for _ in range(600):
            with contextlib.suppress(urllib.error.URLError, ConnectionError):
                urllib.request.urlopen(f"http://127.0.0.1:{port}/api/status?token={token}", timeout=5).close()
                break
            assert server.poll() is None, (place / "lab.log").read_text()
            time.sleep(0.1)
        yield f"http://127.0.0.1:{port}/lab/tree/explorer.ipynb?reset&token={token}"
    finally:
        server.terminate()
        server.wait(30)


@pytest.fixture(scope="module")
def page(address):
    """The notebook in a browser window, executed; `page.errors` collects what its console says."""
    from playwright import sync_api

    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": 1280, "height": 900})
        page.set_default_timeout(PATIENCE)
        page.errors = []
        page.on("console", lambda said: said.type == "error" and page.errors.append(said.text))
        page.on("pageerror", lambda error: page.errors.append(str(error)))
        page.goto(address)
        page.wait_for_selector(".jp-Notebook .jp-Cell")
        page.get_by_text(re.compile(r"^Python 3.* \| Idle$")).wait_for()  # asked to run earlier, it asks for a kernel
        time.sleep(1)
        page.get_by_role("menuitem", name="Run", exact=True).click()
        page.get_by_role("menuitem", name="Run All Cells", exact=True).click()
        try:
            page.wait_for_selector("img.patho-picture[src^=blob]")
        except sync_api.TimeoutError:
            photograph(page, "not-there")
            raise AssertionError(page.inner_text(".jp-Notebook")[-3000:]) from None
        yield page
        browser.close()


def changed(page, act) -> None:
    """Does something, and waits for the picture to be another."""
    before = page.get_attribute("img.patho-picture", "src")
    act()
    page.wait_for_function("src => document.querySelector('img.patho-picture').src != src", arg=before)


def photograph(page, name: str) -> None:
    if folder := os.environ.get("PATHOLIB_SCREENSHOTS"):
        Path(folder).mkdir(parents=True, exist_ok=True)
        page.screenshot(path=Path(folder) / f"{name}.png")
        if page.locator(".patho-explorer").count():
            page.locator(".patho-explorer").first.screenshot(path=Path(folder) / f"{name}-explorer.png")


def opened(page, path: Path) -> None:
    with page.expect_file_chooser() as chooser:
        page.click(".patho-upload")
    chooser.value.set_files(path)


def test_a_person_explores_a_run_with_clicks_and_keys_and_is_told_what_goes_wrong(page, place):
    page.locator(".patho-explorer").scroll_into_view_if_needed()
    photograph(page, "start")
    # While the class is the predicted one: the map for another may be blank, and then it has no colours.
    changed(page, lambda: page.select_option(".patho-colours select", label="viridis"))
    handle = page.locator(".patho-alpha .noUi-handle")
    handle.focus()
    changed(page, lambda: handle.press("ArrowRight"))
    changed(page, lambda: page.select_option(".patho-block select", label="features[5]"))
    other = "benign" if "predicted: malignant" in page.inner_text(".patho-headline") else "malignant"
    changed(page, lambda: page.select_option(".patho-target select", label=other))

    images = page.locator(".patho-image select")
    changed(page, lambda: images.select_option(index=2))
    number = page.locator(".patho-number .noUi-handle")
    number.focus()
    changed(page, lambda: number.press("ArrowRight"))
    assert page.inner_text(".patho-place").startswith("4 of ")
    changed(page, lambda: page.click(".patho-next"))
    page.focus(".patho-previous")
    changed(page, lambda: page.press(".patho-previous", "Space"))
    assert page.inner_text(".patho-place").startswith("4 of ")
    assert images.evaluate("list => list.selectedIndex") == 3

    changed(page, lambda: opened(page, place / "mine.png"))
    assert "mine.png: predicted" in page.inner_text(".patho-headline")
    before = page.get_attribute("img.patho-picture", "src")
    opened(page, place / "broken.png")
    page.wait_for_selector(".patho-error [role=alert]")
    assert "[corrupt] broken.png" in page.inner_text(".patho-error")
    assert page.get_attribute("img.patho-picture", "src") == before
    photograph(page, "error")

    page.fill(".patho-note textarea", "only noise")
    page.click(".patho-save", delay=1000)  # the note is kept when the button goes down; nothing moves below the pointer
    page.wait_for_function("() => document.querySelector('.patho-message').innerText.includes('explored.csv')")
    assert page.inner_text(".patho-error") == ""
    (written,) = (place / "runs").glob("*/explored.csv")
    assert "mine.png" in written.read_text() and "only noise" in written.read_text()
    photograph(page, "notes")


def test_no_widget_lies_on_another_or_is_cut_off(page):
    for width in (1280, 900):
        page.set_viewport_size({"width": width, "height": 900})
        page.wait_for_timeout(500)  # JupyterLab lays out once the size has settled
        photograph(page, f"width-{width}")
        assert page.evaluate(OVERLAPS) == [], width


def test_the_console_is_silent(page):
    assert page.errors == []
