"""What the data check found is on a page that a person can read: every file, its picture, the reason, the remedy."""

import base64
import html
import io
import re

import numpy as np
import pandas as pd
import pytest
from PIL import Image
from samples import JPEG, encoded, own_set, picture, sound

from patholib.base import files, pages
from patholib.base.errors import PathoError
from patholib.data import checking, decoding, findings

BAD = {
    "a90.jpg": JPEG[: len(JPEG) // 2],
    "a91.jpg": b"<!DOCTYPE html><html>",
    "b92.png": encoded(picture(0)),  # a conflict
    "a93.png": encoded(picture(2)),
    "b94.jpg": JPEG + b"behind",
    "b95.png": encoded(picture(9, mode="L")),
    "b96.tif": encoded(Image.fromarray(np.arange(1600, dtype=np.uint16).reshape(40, 40)), "TIFF"),
    "b<i>97&.png": b"",
}


def found(source, tmp_path):
    """The report of a check that stops, and the page."""
    with pytest.raises(PathoError) as caught:
        checking.check(source, 48, cache_dir=tmp_path / "cache", report_dir=tmp_path / "report", progress=False)
    return caught.value, (tmp_path / "report" / "data_report.html").read_text(encoding="utf-8")


def rows(page):
    """{name: (the text of its row, its picture or None)} of all findings."""
    result = {}
    for item in re.findall(r"<li>(.*?)</li>", page, re.S):
        content = re.search(r"base64,([\w+/=]+)", item)
        seen = Image.open(io.BytesIO(base64.b64decode(content[1]))) if content else None
        text = html.unescape(re.sub(r"<[^>]+>", " ", re.sub(r"<span>.*?</span>", "", item, flags=re.S)))
        for name in re.findall(r"<strong>(.*?)</strong>", item):
            result[html.unescape(name)] = (" ".join(text.split()), seen)
    return result


def test_every_file_is_shown_with_its_picture_its_reason_and_the_remedy(tmp_path):
    error, page = found(own_set(tmp_path / "set", sound() | BAD), tmp_path)
    shown = rows(page)
    for problem in error.report["problems"]:
        if problem["code"] != "label_conflict":
            text, _ = shown[problem["path"]]
            assert problem["reason"] in text
        assert problem["remedy"] in html.unescape(page)
    for name, words in (
        ("a00.png (class a)", "different labels"),
        ("b92.png (class b)", "different labels"),
        ("a02.png", "the first is used"),
        ("b94.jpg", "6 bytes behind"),
        ("b95.png", "no colour"),
    ):
        text, seen = shown[name]
        assert words in text and seen.size == (48, 48)
    assert "they differ in group: group of 11 and group of 2" in shown["a93.png"][0]
    assert shown["a91.jpg"][1] is None and shown["b<i>97&.png"][1] is None
    for code, n in (error.report["counts"]["by_code"] | error.report["counts"]["warnings"]).items():
        assert f"<code>{code}</code>" in page and n
    assert "The check has stopped" in page and "9 of 16 images" in page


def test_of_a_damaged_file_the_part_that_is_left_is_shown(tmp_path):
    _, page = found(own_set(tmp_path / "set", sound() | BAD), tmp_path)
    seen = np.asarray(rows(page)["a90.jpg"][1].convert("RGB"), dtype=int)
    whole = np.asarray(decoding.read(JPEG).resize(seen.shape[1::-1]), dtype=int)
    assert np.abs(seen[:8] - whole[:8]).mean() < 20 and seen.shape == (48, 64, 3)  # the upper rows are the picture's
    deep = np.asarray(rows(page)["b96.tif"][1])
    assert deep.min() < 20 and deep.max() > 235  # 16 bits, from its own darkest to its own brightest


def test_the_page_is_one_file_without_scripts_and_obeys_no_name(tmp_path):
    _, page = found(own_set(tmp_path / "set", sound() | BAD), tmp_path)
    assert "<i>" not in page and "b&lt;i&gt;97&amp;.png" in page
    assert "<script" not in page and not re.findall(r'(?:src|href)="(?!data:|#)', page)
    assert "width=device-width" in page and str(tmp_path) not in page


def test_the_table_of_what_is_left_out_names_each_file_with_its_digest_and_reason(tmp_path):
    error, _ = found(own_set(tmp_path / "set", sound() | BAD), tmp_path)
    left = pd.read_csv(tmp_path / "report" / "excluded.csv", keep_default_na=False)
    assert list(left) == ["path", "sha256", "code", "reason"]
    assert left.to_dict("records") == error.report["excluded"] and len(left) == 7
    assert files.read_json(tmp_path / "report" / "data_report.json") == error.report


def test_many_findings_of_one_kind_have_few_pictures_and_say_so(tmp_path, monkeypatch):
    monkeypatch.setattr(findings, "PICTURES", 2)
    monkeypatch.setattr(findings, "LISTED", 4)
    extra = {f"a9{i}.png": encoded(picture(90 + i)) + b"behind" for i in range(5)} | {"b99.png": b""}
    _, page = found(own_set(tmp_path / "set", sound() | extra), tmp_path)
    shown = rows(page)
    assert [name for name, (_, seen) in shown.items() if seen] == ["a90.png", "a91.png"]
    assert "a93.png" in shown and "a94.png" not in shown
    assert "1 more are listed in <code>data_report.json</code>" in page


def test_sound_data_say_so_in_one_line_and_the_printed_line_names_no_page(tmp_path, capsys):
    source = own_set(tmp_path / "set", sound())
    made = checking.check(source, 48, cache_dir=tmp_path / "cache", report_dir=tmp_path / "report")
    page = (tmp_path / "report" / "data_report.html").read_text(encoding="utf-8")
    assert "8 of 8 images are sound" in page and rows(page) == {}
    assert "data_report" not in capsys.readouterr().out and made.pictures == {}
    assert (tmp_path / "report" / "excluded.csv").read_text() == "path,sha256,code,reason\n"


def test_the_page_of_demo_images_says_so_first(tmp_path):
    report = checking.check(own_set(tmp_path / "set", sound()), 48, cache_dir=tmp_path / "cache", progress=False).report
    assert "DEMO" not in findings.page(report, {})
    body = findings.page(report | {"demo": True}, {}).partition("<main>")[2]
    assert body.strip().startswith("<blockquote><p><strong>DEMO IMAGES: NOT A RESULT.</strong>")


def test_the_page_lies_where_outputs_lie_and_the_error_names_it(tmp_path, monkeypatch):
    monkeypatch.setenv("PATHOLIB_OUTPUTS", str(tmp_path / "out"))
    source = own_set(tmp_path / "set", sound() | {"a99.png": b""})
    with pytest.raises(PathoError, match="bad_images") as caught:
        checking.check(source, 48, cache_dir=tmp_path / "cache", progress=False)
    page = tmp_path / "out" / "data-check" / "table" / "data_report.html"
    assert page.is_file() and str(page) in caught.value.remedy


def test_what_the_reader_passed_over_stands_on_the_page(tmp_path):
    source = own_set(tmp_path / "set", sound())
    source.found["unknown_extension"] = {"count": 3, "first": ["notes.txt", "<b>"]}
    report = checking.check(source, 48, cache_dir=tmp_path / "cache", progress=False).report
    assert "unknown extension</td><td>3</td><td>notes.txt, &lt;b&gt;" in findings.page(report, {})


def test_a_frame_escapes_its_title_and_leaves_its_body_alone():
    page = pages.frame("<b> & {body}", "<p>{title} {body} {other}</p>")
    assert "<title>&lt;b&gt; &amp; {body}</title>" in page and "<p>{title} {body} {other}</p>" in page
