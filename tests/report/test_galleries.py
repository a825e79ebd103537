import re

import matplotlib

matplotlib.use("Agg")

import cv2
import numpy as np
import pandas as pd
import pytest
from matplotlib.text import Text

from patholib.judge import gradcam, trust
from patholib.judge.gradcam import Gallery
from patholib.report import galleries
from patholib.report.figures import heatmaps


@pytest.fixture
def found():
    """Three pictures: one with evidence, one with a tenth of it, one with none, whose name is a trap."""
    rng = np.random.default_rng(0)
    heat = np.zeros((3, 32, 32), np.float32)
    heat[0, 4:12, 4:12], heat[1, 20:28, 20:28] = 2.0, 0.2
    table = pd.DataFrame(
        {
            "section": ["true positive", "true positive", "highest loss"],
            "path": ["case/a.png", "case/b.png", "<script>alert(1)</script>/../x&y.png"],
            "label": ["malignant", "malignant", "benign"],
            "decision": ["malignant"] * 3,
            "p": [0.9, 0.4, 0.7],
            "loss": [0.1, 0.2, 1.2],
            "threshold": [0.3] * 3,
        }
    )
    return Gallery(rng.integers(0, 256, (3, 32, 32, 3), dtype=np.uint8), heat, table, "layer2[1]", "gradcam")


def test_a_gallery_is_kept_as_sheet_page_table_and_single_pictures(found, tmp_path):
    galleries.write(found, tmp_path, note="Demo images: not a result")
    names = {path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*.*")}
    assert names == {
        "gallery.png",
        "gallery.html",
        "gallery.csv",
        "gallery/01-true-positive-a.png",
        "gallery/02-true-positive-b.png",
        "gallery/03-highest-loss-x-y.png",
    }
    single = cv2.imread(str(tmp_path / "gallery/01-true-positive-a.png"))[..., ::-1]
    assert single.shape == (32, 96, 3) and np.array_equal(single[:, :32], found.pictures[0])
    assert list(pd.read_csv(tmp_path / "gallery.csv")["path"]) == list(found.table["path"])


def test_the_page_names_every_picture_escaped_and_fetches_nothing(found, tmp_path):
    text = galleries.page(found, note="<b>note</b>")
    assert "<script" not in text and "&lt;script&gt;alert(1)&lt;/script&gt;/../x&amp;y.png" in text
    assert "&lt;b&gt;note" in text and found.captions[0] in text
    sources = re.findall(r'src="([^"]*)"', text)
    assert len(sources) == 1 + 2 * 3 and all(source.startswith("data:image/") for source in sources)
    assert text.count("blank map") == 1
    assert re.findall(r"<h2>([^<]*)", text) == ["true positive", "highest loss"]


def test_the_sheet_says_names_classes_probabilities_and_which_maps_are_blank(found):
    sheet = heatmaps.heat_sheet(found, note="Demo images: not a result")
    texts = [text.get_text().replace("\n", " ") for text in sheet.findobj(Text)]
    assert f"a.png {found.captions[0]}" in texts and texts.count("blank map") == 1
    assert {"true positive", "highest loss", "Demo images: not a result - Heatmaps not checked"} <= set(texts)
    assert any("own maximum" in text for text in texts) and any("layer2[1]" in text for text in texts)


def test_on_one_scale_a_faint_map_looks_faint_and_on_its_own_it_does_not(found):
    own, shared = (galleries._triple(found, 1, one_scale)[1] for one_scale in (False, True))
    red = own[24, 24].astype(int)
    assert red[0] > 100 and red[2] < 50 and shared[24, 24][2] > 100  # red; blue
    assert np.array_equal(galleries._triple(found, 0, False), galleries._triple(found, 0, True))


def test_a_caption_gives_the_probability_that_was_compared_with_the_threshold():
    assert gradcam.caption("a", "b", 0.0041, "b", 0.0029) == "true: a, predicted: b (0.0041, threshold 0.0029)"
    assert (
        gradcam.caption("benign", "malignant", 0.42, "malignant", 0.37)
        == "true: benign, predicted: malignant (0.42, threshold 0.37)"
    )
    assert (
        gradcam.caption("malignant", "benign", 0.7, "malignant", 0.37)
        == "true: malignant, predicted: benign (malignant 0.30, threshold 0.37)"
    )


def test_the_verdict_stands_on_the_page_before_the_heatmaps(found):
    facts = {"verdict": "Not <reliable>", "state": "refuted", "block": found.block, "method": found.method}
    text = galleries.page(found, facts=facts).partition("<main>")[2]
    assert text.index("Not &lt;reliable&gt;") < text.index("<figure>") and 'class="verdict doubt"' in text
    sheet = heatmaps.heat_sheet(found, note="Demo images", facts=facts)
    assert any("Demo images - Heatmaps refuted" in text.get_text() for text in sheet.texts)
    assert 'class="verdict"' in galleries.page(found, facts=facts | {"state": "supported"})


def test_a_gallery_without_checks_of_such_maps_says_so_before_them(found):
    for facts in (None, {"verdict": "Fine", "state": "supported", "block": "another", "method": found.method}):
        text = galleries.page(found, facts=facts).partition("<main>")[2]
        assert text.index(trust.NOT_CHECKED) < text.index("<figure>") and "Fine" not in text
        sheet = heatmaps.heat_sheet(found, facts=facts)
        assert any("Heatmaps not checked" in text.get_text() for text in sheet.texts)
