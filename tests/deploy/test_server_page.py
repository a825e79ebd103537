"""The page of the service in a real browser: an image is dropped, chosen by keyboard, and read on a phone."""

from __future__ import annotations

import base64
import shutil

import live
import pytest
import samples

playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="there is no chromium")
PICTURE = samples.encoded(samples.textured(1))


@pytest.fixture(scope="module")
def browser():
    with playwright.sync_playwright() as driver:
        found = driver.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield found
        found.close()


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    with live.threaded(
        live.predictor(live.model(tmp_path_factory.mktemp("model"), threshold=0.6)), token="s3cret-token"
    ) as found:
        yield found


@pytest.fixture
def page(browser, server):
    """The page, opened; in the end nothing was asked of another site, and nothing was wrong."""
    opened = browser.new_page(viewport={"width": 1000, "height": 900})
    asked, wrong = [], []
    opened.on("request", lambda request: asked.append(request.url))
    opened.on("console", lambda line: wrong.append(line.text) if line.type == "error" and not refused(line) else 0)
    opened.on("pageerror", lambda error: wrong.append(str(error)))
    opened.set_default_timeout(live.SECONDS * 1000)
    opened.goto(f"http://127.0.0.1:{server.port}/")
    yield opened
    opened.close()
    assert wrong == []
    assert all(url.startswith((f"http://127.0.0.1:{server.port}/", "data:", "blob:")) for url in asked), asked


def refused(line) -> bool:
    """The browser notes every 401 and 422, which are meant."""
    return line.text.startswith("Failed to load resource") and ("401" in line.text or "422" in line.text)


def unlock(page):
    """Types the token that the page asks for, by keyboard."""
    page.wait_for_selector("#keys:not([hidden])")
    page.keyboard.press("Tab")
    page.keyboard.type("s3cret-token")
    page.keyboard.press("Enter")
    page.wait_for_selector("#model:not(:empty)")


def drop(page, content: bytes, kind: str = "image/png"):
    page.evaluate(
        """([content, kind]) => {
        const bytes = Uint8Array.from(atob(content), (c) => c.charCodeAt(0)), moved = new DataTransfer();
        moved.items.add(new File([bytes], "Jane Doe.png", {type: kind}));
        for (const name of ["dragenter", "dragover", "drop"])
            document.getElementById("drop").dispatchEvent(
                new DragEvent(name, {dataTransfer: moved, bubbles: true, cancelable: true}));
    }""",
        [base64.b64encode(content).decode(), kind],
    )


def shown(page) -> dict:
    """What is to be seen of an answer."""
    page.wait_for_selector("#result:not([hidden])")
    page.wait_for_function("document.getElementById('heatmap').naturalWidth > 0")
    return {
        "decision": page.inner_text("#decision"),
        "rule": page.inner_text("#rule"),
        "rows": [row.split("\t") for row in page.inner_text("#classes").splitlines()],
        "original": page.evaluate("document.getElementById('original').naturalWidth"),
        "heat": page.get_attribute("#heatmap", "alt"),
    }


def test_an_image_that_is_dropped_is_answered_with_probabilities_and_a_heatmap(page, server, tmp_path):
    unlock(page)
    drop(page, PICTURE)
    found = shown(page)
    said = live.post(server.port, PICTURE, Authorization="Bearer s3cret-token").json
    assert found["decision"] == said["decision"] and found["original"] == 192
    assert "malignant" in found["rule"] and "60.0 %" in found["rule"]
    order = sorted(said["probabilities"].items(), key=lambda pair: -pair[1])
    assert "".join("".join(row) for row in found["rows"]) == "".join(f"{n}{100 * p:.1f} %" for n, p in order)
    assert said["decision"] in found["heat"]
    page.screenshot(path=tmp_path / "dropped.png", full_page=True)
    drop(page, b"no picture")
    page.wait_for_selector("#status.error")
    assert page.inner_text("#status") and not page.is_visible("#result")


def test_the_keyboard_alone_is_enough(page, tmp_path):
    unlock(page)
    (tmp_path / "a.png").write_bytes(PICTURE)
    with page.expect_file_chooser() as chooser:
        page.focus("#token")
        for _ in range(5):
            page.keyboard.press("Tab")
            if page.evaluate("document.activeElement.id") == "file":
                break
        page.keyboard.press("Enter")
    chooser.value.set_files(tmp_path / "a.png")
    first = shown(page)
    assert page.evaluate("document.activeElement.id") == "result"  # a screen reader goes on there
    page.focus("#file")
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.id") == "tta"
    with page.expect_response(lambda reply: "tta=true" in reply.url):
        page.keyboard.press("Space")
    assert shown(page)["decision"] in ("benign", "malignant") and first["heat"]
    assert page.get_attribute("#status", "aria-live") == "polite"


def test_shares_that_decide_are_told_beside_the_probabilities(browser, tmp_path):
    decision = {
        "temperature": 1.0,
        "threshold": 0.6,
        "positive": "malignant",
        "shares": {"benign": 0.4, "malignant": 0.6},
    }
    with live.threaded(live.predictor(live.model(tmp_path, decision=decision))) as found:
        page = browser.new_page()
        page.set_default_timeout(live.SECONDS * 1000)
        page.goto(f"http://127.0.0.1:{found.port}/")
        page.wait_for_selector("#model:not(:empty)")
        drop(page, PICTURE)
        assert "training images" in shown(page)["rule"]
        page.close()


def test_it_fits_a_phone(page, tmp_path):
    page.set_viewport_size({"width": 390, "height": 844})
    unlock(page)
    drop(page, PICTURE)
    shown(page)
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    sizes = page.evaluate("""[...document.querySelectorAll('button, #drop, .option')].filter((e) => e.offsetHeight)
                             .map((e) => e.offsetHeight)""")
    assert min(sizes) >= 44  # of what a finger has to meet
    page.screenshot(path=tmp_path / "phone.png", full_page=True)
