"""A table of predictions is whole or goes on: the same bytes whenever, and however often, its process was killed."""

from __future__ import annotations

import csv
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from tiny import TINY

from patholib import cli
from patholib.base import locks
from patholib.base.errors import PathoError
from patholib.data import decoding
from patholib.deploy import export, predictions
from patholib.deploy.inference import Predictor
from patholib.model import building

pytestmark = pytest.mark.heavy

ROOT = Path(__file__).parents[2]
RECIPE = replace(TINY, tta_views=2)


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """The real ResNet18, because processes of their own know no other."""
    folder = tmp_path_factory.mktemp("model")
    export.save_model(
        folder, building.build(RECIPE).state_dict(), RECIPE, run="a run", demo=True, threshold=0.5, temperature=1.3
    )
    return folder


@pytest.fixture(scope="module")
def predictor(model):
    return Predictor(model, "torch")


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    """60 small pictures in three folders, of which 4 are bad, and litter."""
    root, rng = tmp_path_factory.mktemp("pictures") / "scans", np.random.default_rng(0)
    for i in range(60):
        path = root / f"folder {i % 3}" / f"{i:02}, odd.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (48, 48, 3), np.uint8)).save(path)
    (root / "folder 0" / "00, odd.png").write_bytes(b"")
    (root / "folder 1" / "cut.png").write_bytes((root / "folder 1" / "01, odd.png").read_bytes()[:-20])
    (root / "folder 2" / "page.jpg").write_text("<html>no picture</html>")
    Image.fromarray(rng.integers(0, 256, (8, 8, 3), np.uint8)).save(root / "folder 2" / "tiny.png")
    for name in ("Thumbs.db", ".hidden.png", "notes.txt"):
        (root / name).write_text("")
    return root


def rows(path):
    with path.open(encoding="utf-8", newline="") as stream:
        return list(csv.DictReader(stream))


def bytes_of(out):
    return out.read_bytes(), out.with_name(f"{out.stem}_bad.csv").read_bytes()


@pytest.fixture(scope="module")
def unbroken(predictor, pictures, tmp_path_factory):
    out = tmp_path_factory.mktemp("unbroken") / "p.csv"
    table = predictions.write(predictor, [pictures], out, progress=False)
    assert (table.answered, table.bad, table.before) == (59, 4, 0)
    assert table.left == {"ignored": 2, "unknown_extension": 1, "links_not_followed": 0}
    return out


OWN = ("decision", "prediction_set", "none_of_these", "alert", "warnings", "model")


def test_every_picture_has_its_answer_or_its_reason(unbroken, predictor, pictures):
    found, bad = rows(unbroken), rows(unbroken.with_name("p_bad.csv"))
    assert list(found[0]) == ["path", "p_benign", "p_malignant", *OWN]
    assert len({row["path"] for row in found + bad}) == 63
    assert {Path(row["path"]).name: row["code"] for row in bad} == {
        "00, odd.png": "empty",
        "cut.png": "corrupt",
        "page.jpg": "not_an_image",
        "tiny.png": "too_small",
    }
    assert all(row["remedy"] for row in bad)
    for row in found[::7]:
        answer = predictor.answer(predictor.read(row["path"]))
        assert [float(row[f"p_{name}"]) for name in predictor.classes] == list(answer.probs.values())
        assert (row["decision"], row["model"], row["alert"]) == (answer.decision, predictor.sha256, "")
    assert [row["path"] for row in found] == sorted(row["path"] for row in found)
    assert {path.name for path in unbroken.parent.iterdir()} == {"p.csv", "p_bad.csv"}


def test_a_table_cut_off_anywhere_goes_on_to_the_same_bytes(predictor, pictures, unbroken, tmp_path, monkeypatch):
    """At 6 places of the journal, with and without rubbish behind, as a power cut leaves it."""
    kept = {}
    monkeypatch.setattr(
        predictions, "_finish", lambda *given: kept.setdefault("journal", given[2].read_bytes()) and (0, 0)
    )
    predictions.write(predictor, [pictures], tmp_path / "p.csv", progress=False)
    monkeypatch.undo()
    computed, journal = [], tmp_path / "p.csv.part"
    answer = Predictor.answer
    monkeypatch.setattr(Predictor, "answer", lambda self, *given: computed.append(1) or answer(self, *given))
    places = np.random.default_rng(0).integers(0, len(kept["journal"]), 6).tolist()
    for place, rubbish in zip(places, (b"", b"\0" * 700, b'[1, "a"') * 2, strict=True):
        whole = kept["journal"][:place].count(b"\n")
        journal.write_bytes(kept["journal"][:place] + rubbish)
        computed.clear()
        table = predictions.write(predictor, [pictures], tmp_path / "p.csv", workers=1 + place % 3, progress=False)
        assert bytes_of(tmp_path / "p.csv") == bytes_of(unbroken)
        assert table.before == max(0, whole - 1) and len(computed) == 59 - sum(
            json.loads(line)[3] is None for line in kept["journal"].splitlines()[1:whole]
        )
        for path in tmp_path.iterdir():
            path.unlink()


def test_whatever_the_order_and_number_of_workers_the_bytes_are_the_same(predictor, pictures, unbroken, tmp_path):
    folders = [pictures / f"folder {i}" for i in range(3)]
    predictions.write(
        predictor, [*folders, pictures, folders[1] / "01, odd.png"], tmp_path / "p.csv", workers=7, progress=False
    )
    assert bytes_of(tmp_path / "p.csv") == bytes_of(unbroken)


def test_a_file_that_changed_meanwhile_is_computed_again(predictor, pictures, tmp_path, monkeypatch):
    mine = shutil.copytree(pictures / "folder 1", tmp_path / "mine")
    monkeypatch.setattr(predictions, "_finish", lambda *given: (0, 0))
    predictions.write(predictor, [mine], tmp_path / "p.csv", progress=False)
    monkeypatch.undo()
    shutil.copy(pictures / "folder 2" / "02, odd.png", mine / "01, odd.png")
    shutil.copy(pictures / "folder 2" / "05, odd.png", mine / "new.png")
    (mine / "04, odd.png").unlink()
    table = predictions.write(predictor, [mine], tmp_path / "p.csv", progress=False)
    assert table.before == 19 and table.answered == 20
    found = {Path(row["path"]).name: float(row["p_benign"]) for row in rows(tmp_path / "p.csv")}
    assert (
        found["01, odd.png"]
        == predictor.probabilities(predictor.read(pictures / "folder 2" / "02, odd.png")[None])[0, 0]
    )
    assert "new.png" in found and "04, odd.png" not in found


def test_a_problem_of_the_moment_is_tried_again(predictor, pictures, tmp_path, monkeypatch):
    read = decoding.read

    def failing(path, name=None):
        if str(path).endswith("01, odd.png"):
            raise PathoError("io_error", str(path), "cannot be read (Input/output error)", "Check the disk")
        return read(path, name)

    monkeypatch.setattr(decoding, "read", failing)
    monkeypatch.setattr(predictions, "_finish", lambda *given: (0, 0))
    predictions.write(predictor, [pictures / "folder 1"], tmp_path / "p.csv", progress=False)
    monkeypatch.undo()
    table = predictions.write(predictor, [pictures / "folder 1"], tmp_path / "p.csv", progress=False)
    assert (table.before, table.answered, table.bad) == (20, 20, 1)


def refusal(code, *given, **options):
    with pytest.raises(PathoError) as stopped:
        predictions.write(*given, progress=False, **options)
    assert stopped.value.code == code
    return stopped.value


def test_two_models_are_never_mixed_in_one_table(predictor, pictures, tmp_path, monkeypatch):
    out, place = tmp_path / "p.csv", [pictures / "folder 1"]
    monkeypatch.setattr(predictions, "_finish", lambda *given: (0, 0))
    predictions.write(predictor, place, out, progress=False)
    monkeypatch.undo()
    before = out.with_name("p.csv.part").read_bytes()
    export.save_model(tmp_path / "other", building.build(replace(RECIPE, seed=1)).state_dict(), RECIPE)
    assert "model" in refusal("other_model", Predictor(tmp_path / "other", "torch"), place, out).reason
    assert "tta False instead of True" in refusal("other_model", predictor, place, out, tta=True).reason
    refusal("other_model", predictor, place, out, heatmaps=tmp_path / "heat")
    assert out.with_name("p.csv.part").read_bytes() == before
    predictions.write(predictor, place, out, progress=False)
    refusal("output_exists", predictor, place, out)


def test_what_cannot_be_done_is_refused_before_anything_is_written(predictor, pictures, tmp_path):
    (tmp_path / "empty").mkdir()
    out = tmp_path / "out" / "p.csv"
    refusal("missing_file", predictor, [tmp_path / "gone"], out)
    refusal("no_images", predictor, [tmp_path / "empty"], out)
    refusal("output_in_data", predictor, [pictures], out, heatmaps=pictures / "heat")
    assert not out.parent.exists()
    with locks.alone(out, "output_locked", "written"):
        refusal("output_locked", predictor, [pictures], out)
    (out.parent / "p_bad.csv").write_text("mine")
    refusal("output_exists", predictor, [pictures], out)
    assert (out.parent / "p_bad.csv").read_text() == "mine"


def test_each_picture_gets_its_heatmap_and_the_table_names_it(predictor, pictures, tmp_path):
    chosen = [pictures / "folder 1" / "01, odd.png", pictures / "folder 2" / "02, odd.png"]
    predictions.write(predictor, chosen, tmp_path / "p.csv", heatmaps=tmp_path / "heat", progress=False)
    names = [row["heatmap"] for row in rows(tmp_path / "p.csv")]
    assert sorted(names) == sorted(path.name for path in (tmp_path / "heat").iterdir()) and len(set(names)) == 2
    for name in names:
        assert np.asarray(Image.open(tmp_path / "heat" / name)).shape == (32, 32, 3)


@pytest.mark.skipif(sys.platform == "win32", reason="file names there are text")
def test_names_that_are_no_text_or_hold_line_ends_are_one_row_each(predictor, pictures, tmp_path):
    source = (pictures / "folder 1" / "01, odd.png").read_bytes()
    (tmp_path / "mine").mkdir()
    for name in (b"caf\xe9.png", b"line\nend.png", b'"quoted", x.png'):
        Path(os.fsdecode(bytes(tmp_path / "mine") + b"/" + name)).write_bytes(source)
    predictions.write(predictor, [tmp_path / "mine"], tmp_path / "p.csv", progress=False)
    found = [Path(row["path"]).name for row in rows(tmp_path / "p.csv")]
    assert sorted(found) == ['"quoted", x.png', "caf\\udce9.png", "line\nend.png"]


# ------------------------------------------------------------------------------------------------------- the command


def command(*given, **options):
    environment = os.environ | {"OMP_NUM_THREADS": "1", "TQDM_DISABLE": "1", "PYTHONPATH": str(ROOT)}
    return subprocess.Popen(
        [sys.executable, "-m", "patholib", *map(str, given)],
        env=environment,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        **options,
    )


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="no SIGKILL on this system")
def test_killed_in_the_middle_it_ends_with_the_bytes_of_an_unbroken_one(model, predictor, pictures, tmp_path):
    many = tmp_path / "many"
    for i in range(2):
        shutil.copytree(pictures, many / str(i))
    given = ("predict", model, "many", "--out", "p.csv", "--engine", "torch", "--tta")
    journal = tmp_path / "p.csv.part"
    process = command(*given, cwd=tmp_path)
    while process.poll() is None and (not journal.exists() or journal.read_bytes().count(b"\n") < 20):
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL and not (tmp_path / "p.csv").exists()
    done = journal.read_bytes().count(b"\n") - 1
    assert 19 <= done < 2 * 63
    again = command(*given, cwd=tmp_path)
    out, err = again.communicate()
    assert again.returncode == 1, err  # because of the bad files
    assert f"{2 * 59} pictures answered: p.csv; {done} of all were done before" in out
    assert "8 could not be used: p_bad.csv" in out and "2 that are no pictures by their name" in out
    assert "knows nothing about tissue" in err
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path)
        predictions.write(predictor, ["many"], tmp_path / "unbroken.csv", tta=True, progress=False)
    assert bytes_of(tmp_path / "p.csv") == bytes_of(tmp_path / "unbroken.csv")


def test_the_exit_code_tells_all_from_some_and_from_a_refusal(model, pictures, tmp_path, capsys):
    good, bad = pictures / "folder 1" / "01, odd.png", pictures / "folder 2" / "page.jpg"
    given = ["predict", "--engine", "torch", "--workers", "1", str(model), str(good)]
    assert cli.main([*given, "--out", str(tmp_path / "all.csv")]) == 0
    assert cli.main([*given, str(bad), "--out", str(tmp_path / "some.csv")]) == 1
    assert cli.main([*given, "--out", str(tmp_path / "all.csv")]) == 2
    assert cli.main([*given, "--out", str(tmp_path / "pin.csv"), "--sha256", "0" * 64]) == 2
    assert cli.main(["predict", str(tmp_path), str(good), "--out", str(tmp_path / "x.csv")]) == 2
    err = capsys.readouterr().err
    assert "[output_exists]" in err and "[pin_mismatch]" in err and "[missing_file]" in err
    assert sorted(path.name for path in tmp_path.iterdir()) == ["all.csv", "some.csv", "some_bad.csv"]


def test_a_table_of_new_patients_joins_their_data_and_one_without_them_says_so(tmp_path, pictures, capsys):
    alone = {"temperature": 1.0, "threshold": 0.5, "positive": "malignant"}
    biases = {"sex": {"female": {"benign": 0.0, "malignant": 2.0}, "male": {"benign": 0.0, "malignant": 0.0}}}
    decision = alone | {"patient": biases, "image_alone": alone}
    export.save_model(tmp_path, building.build(TINY).state_dict(), TINY, decision=decision)
    picture = next(iter(sorted(Path(pictures, "folder 1").glob("*.png"))))
    odds = []
    for name, text in {
        "female": 'path,sex\n"{}",female',
        "male": 'path,sex\n"{}",male',
        "alone": 'path,x\n"{}",1',
    }.items():
        (tmp_path / f"{name}.csv").write_text(text.format(picture))
        out = tmp_path / f"{name}-answers.csv"
        assert cli.main(["predict", str(tmp_path), str(tmp_path / f"{name}.csv"), "--out", str(out)]) == 0
        said, (row,) = capsys.readouterr().err, rows(out)
        assert ("By the image alone" in said) == ("image_alone" in row["warnings"]) == (name == "alone")
        odds.append(float(row["p_malignant"]) / float(row["p_benign"]))
    assert odds == pytest.approx([odds[1] * np.exp(2), odds[1], odds[1]])
    for wrong in ("path,sex\n,male", f'path,sex\n"{picture}",male\n"{picture}",female'):  # no path, and one twice
        (tmp_path / "wrong.csv").write_text(wrong)
        assert cli.main(["predict", str(tmp_path), str(tmp_path / "wrong.csv"), "--out", str(tmp_path / "w.csv")]) == 2


def test_an_interrupt_says_that_nothing_is_lost(monkeypatch, model, pictures, tmp_path, capsys):
    def interrupted(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(predictions, "write", interrupted)
    given = ["predict", str(model), str(pictures), "--out", str(tmp_path / "p.csv"), "--engine", "torch"]
    assert cli.main(given) == cli.STOPPED and "nothing that was finished is lost" in capsys.readouterr().err


def test_help_is_there_within_a_second():
    started = time.perf_counter()
    process = command("predict", "--help")
    out, _ = process.communicate()
    assert process.returncode == 0 and "--heatmaps" in out and "1 some could not be used" in " ".join(out.split())
    assert time.perf_counter() - started < 1.0
