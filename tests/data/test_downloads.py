"""What `patholib download` fetches: data sets that are then found by themselves, and weights for another machine."""

from __future__ import annotations

import hashlib
import io
import os
import re
import shutil
import signal
import subprocess
import sys
import tarfile
import time
import zipfile
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from origin import Answer, origin
from PIL import Image

from patholib import cli
from patholib.base import files
from patholib.base.errors import PathoError
from patholib.data import demo, downloads, fetch, readers
from patholib.data.readers import isic2019
from patholib.data.readers.sources import SOURCES, downloadable
from patholib.model import downloading

pytestmark = pytest.mark.heavy

ROOT = Path(__file__).parents[2]


def jpeg(seed: int, form: str = "JPEG") -> bytes:
    stream = io.BytesIO()
    pixels = np.random.default_rng(seed).integers(0, 255, (8, 8, 3), np.uint8)
    Image.fromarray(pixels).save(stream, form)
    return stream.getvalue()


def breakhis_archive(names=("SOB_B_A-14-22549AB-40-001", "SOB_M_DC-14-2523-40-001")) -> bytes:
    """A small archive with the folders of the real one."""
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w:gz") as archive:
        for number, name in enumerate(names):
            label = "benign" if "_B_" in name else "malignant"
            info = tarfile.TarInfo(f"BreaKHis_v1/histology_slides/breast/{label}/SOB/{name}.png")
            content = jpeg(number, "PNG")
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return stream.getvalue()


def isic_files() -> dict[str, bytes]:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as archive:
        for number in (1, 2):
            archive.writestr(f"ISIC_2019_Training_Input/ISIC_000000{number}.jpg", jpeg(number))
        archive.writestr("ISIC_2019_Training_Input/LICENSE.txt", "CC-BY-NC")
    truth = (
        "image,MEL,NV,BCC,AK,BKL,DF,VASC,SCC,UNK\nISIC_0000001,1.0,0,0,0,0,0,0,0,0\nISIC_0000002,0,1.0,0,0,0,0,0,0,0\n"
    )
    metadata = "image,age_approx,anatom_site_general,lesion_id,sex\nISIC_0000001,55,,,\nISIC_0000002,,,L2,female\n"
    return {
        "ISIC_2019_Training_Input.zip": stream.getvalue(),
        "ISIC_2019_Training_Metadata.csv": metadata.encode(),
        "ISIC_2019_Training_GroundTruth.csv": truth.encode(),
    }


@pytest.fixture(autouse=True)
def project(tmp_path, monkeypatch):
    """A project of the test's own with nothing in it, no proxies, and no time to wait."""
    monkeypatch.setattr(files, "project_root", lambda: tmp_path / "project")
    monkeypatch.setenv("PATHOLIB_MOUNTS", str(tmp_path / "mounted"))
    monkeypatch.setattr(fetch, "PAUSE", 0.01)
    monkeypatch.setattr(os, "sync", lambda: None, raising=False)
    for name in ("PATHOLIB_DATA", "http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    return tmp_path / "project"


def publish(monkeypatch, server, kind: str, sizes: dict[str, int]) -> None:
    """Lets a data set come from the server of the test, with the sizes of its files."""
    source = SOURCES[kind]
    ours = tuple(
        replace(file, url=server.url(file.name), about=sizes[file.name], size=sizes[file.name] if file.size else None)
        for file in source.files
    )
    monkeypatch.setitem(SOURCES, kind, replace(source, files=ours, images=2))


@pytest.fixture
def breakhis(monkeypatch):
    content = breakhis_archive()
    with origin(Answer(content)) as server:
        publish(monkeypatch, server, "breakhis", {"BreaKHis_v1.tar.gz": len(content)})
        yield server


@pytest.fixture
def isic(monkeypatch):
    given = isic_files()
    with origin(*map(Answer, given.values())) as server:
        publish(monkeypatch, server, "isic2019", {name: len(content) for name, content in given.items()})
        yield server


def yes(terms: str) -> bool:
    return True


def refusal(code: str, *arguments, **settings) -> PathoError:
    with pytest.raises(PathoError) as stopped:
        downloading.fetch_by_name(*arguments, **settings)
    assert stopped.value.code == code
    return stopped.value


# ----------------------------------------------------------------------------------------------------- the data sets


def test_breakhis_is_fetched_unpacked_and_found_by_itself(breakhis, project, capsys):
    assert cli.main(["download", "breakhis", "--accept-licence"]) == 0
    out = capsys.readouterr().out
    assert out.index("Licence:") < out.index("Cite: F. A. Spanhol") < out.index("SHA-256 ") < out.index("2 images in")
    assert "BreaKHis_v1.tar.gz: is there" not in out
    source = readers.load("breakhis")
    assert (
        source.root.is_relative_to(project / "data" / "breakhis")
        and sorted(source.table["label"]) == ["benign", "malignant"]
        and not source.demo
    )
    assert {path.name for path in (project / "data" / "breakhis").iterdir()} == {"BreaKHis_v1", "BreaKHis_v1.tar.gz"}


def test_isic_is_fetched_with_the_table_that_names_it_last(isic, project, capsys):
    assert cli.main(["download", "isic2019", "--accept-licence", "--remove-archive"]) == 0
    assert [one.path.strip("/") for one in isic.asked] == list(isic_files())
    source = readers.load("isic2019")
    assert source.root == project / "data" / "isic2019" and set(source.table["label"]) == {"MEL", "NV"}
    assert not (source.root / "ISIC_2019_Training_Input.zip").exists() and "zip: removed" in capsys.readouterr().out
    assert cli.main(["download", "isic2019"]) == 0, "all is there, also without the archive: nothing to accept"
    assert len(isic.asked) == 3


def test_what_is_there_is_not_fetched_again(breakhis, project, monkeypatch, capsys):
    downloading.fetch_by_name("breakhis", yes)
    for place in (None, project / "data" / "breakhis"):
        assert downloading.fetch_by_name("breakhis", lambda terms: pytest.fail("asked"), place)
    assert len(breakhis.asked) == 1
    (project / "data" / "breakhis").rename(project / "data" / "BreaKHis_v1")  # unpacked by hand, as one may
    by_hand = [project / "data" / "BreaKHis_v1"]
    assert downloading.fetch_by_name("breakhis", lambda terms: pytest.fail("asked")) == by_hand
    assert "already" in capsys.readouterr().out and len(breakhis.asked) == 1
    (by_hand[0] / "BreaKHis_v1" / "BreaKHis_v1").rename(project / "histology")
    assert downloading.fetch_by_name("breakhis", lambda terms: pytest.fail("asked"), project / "histology")
    downloading.fetch_by_name("breakhis", yes, project / "elsewhere")
    assert len(breakhis.asked) == 2


def test_of_half_a_data_set_the_rest_is_fetched(isic, project):
    """Though the table by which ISIC 2019 is recognised is there."""
    truth = files.write_bytes(project / "data/isic2019" / isic2019.TRUTH, [*isic_files().values()][-1])
    downloading.fetch_by_name("isic2019", yes)
    assert [one.path for one in isic.asked] == ["/ISIC_2019_Training_Input.zip", "/ISIC_2019_Training_Metadata.csv"]
    assert truth.is_file() and len(readers.load("isic2019").table) == 2


def test_an_archive_that_was_fetched_by_hand_is_unpacked(breakhis, project, capsys):
    folder = project / "data" / "breakhis"
    folder.mkdir(parents=True)
    (folder / "BreaKHis_v1.tar.gz").write_bytes(breakhis_archive())
    downloading.fetch_by_name("breakhis", yes)
    assert not breakhis.asked and len(readers.load("breakhis").table) == 2
    assert "is there already" in capsys.readouterr().out


@pytest.mark.parametrize(("answer", "fetched"), [("y", 1), ("yes", 1), ("n", 0), ("", 0), (None, 0)])
def test_nothing_is_fetched_before_the_licence_is_accepted(breakhis, project, monkeypatch, capsys, answer, fetched):
    def typed(question):
        if answer is None:
            raise EOFError
        return answer

    assert cli.main(["download", "breakhis"]) == 2, "no terminal, no --accept-licence"
    out, err = capsys.readouterr()
    assert "Licence: For research" in out and "--accept-licence" in err and "[licence_not_accepted]" in err
    assert not breakhis.asked and not (project / "data").exists()
    monkeypatch.setattr(sys.stdin, "isatty", lambda: True)
    monkeypatch.setattr("builtins.input", typed)
    assert cli.main(["download", "breakhis"]) == 2 * (not fetched)
    assert len(breakhis.asked) == fetched


def test_the_terms_say_licence_citation_addresses_and_sizes():
    for kind, licence in (("breakhis", "CC BY 4.0"), ("isic2019", "CC BY-NC 4.0")):
        terms = downloads.terms(kind, Path("here"))
        for text in (
            licence,
            "Cite: ",
            SOURCES[kind].page,
            "no checksum published",
            "To here",
            *(file.url for file in SOURCES[kind].files),
        ):
            assert text in terms


def test_the_table_of_sources_fits_the_readers():
    """The file by which a data set is recognised is the last one: half a data set is not found as one."""
    assert set(downloadable()) <= set(SOURCES) <= set(readers.KINDS)
    for source in SOURCES.values():
        for file in source.files:
            assert re.fullmatch(r"https?://[\w./-]+/" + re.escape(file.name), file.url)
            assert bool(file.folder) == file.name.endswith((".zip", ".tar.gz")) and file.about > 0
            assert file.size in (None, file.about) and re.fullmatch("([0-9a-f]{64})?", file.sha256)
    assert SOURCES["isic2019"].files[-1].name == isic2019.TRUTH
    assert {file.folder or file.name for file in SOURCES["isic2019"].files} == {
        isic2019.INPUT,
        isic2019.TRUTH,
        isic2019.METADATA,
    }


def test_a_folder_that_was_filled_by_hand_is_refused_before_anything_is_fetched(isic, project):
    (project / "data/isic2019/ISIC_2019_Training_Input").mkdir(parents=True)
    (project / "data/isic2019/ISIC_2019_Training_Input/ISIC_0000001.jpg").write_bytes(jpeg(1))
    assert "--to" in refusal("folder_exists", "isic2019", yes).remedy and not isic.asked


def test_a_disk_that_holds_the_archive_but_not_its_files_is_known_before(breakhis, monkeypatch):
    size = SOURCES["breakhis"].files[0].about
    monkeypatch.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(0, 0, 2 * size - 1))
    refusal("no_space", "breakhis", lambda terms: pytest.fail("asked"))
    assert not breakhis.asked


def test_a_hostile_archive_leaves_nothing_that_would_be_found(monkeypatch, project, capsys):
    content = breakhis_archive(("SOB_B_A-14-22549AB-40-001", "../../../../../../SOB_M_DC-14-2523-40-001"))
    with origin(Answer(content)) as server:
        publish(monkeypatch, server, "breakhis", {"BreaKHis_v1.tar.gz": len(content)})
        assert cli.main(["download", "breakhis", "--accept-licence"]) == 2
    assert "[unsafe_archive]" in capsys.readouterr().err
    assert not list(project.rglob("*.png")) and readers.find("breakhis").demo


def test_an_archive_that_ends_early_is_never_unpacked_in_part_and_fetched_anew(monkeypatch, project):
    content = breakhis_archive()
    with origin(Answer(content[:-20], etag='"cut off"'), Answer(content)) as server:
        publish(monkeypatch, server, "breakhis", {"BreaKHis_v1.tar.gz": len(content)})
        assert "BreaKHis_v1.tar.gz.bad and not used" in refusal("bad_archive", "breakhis", yes).reason
        assert not list(project.rglob("*.png")) and readers.find("breakhis").demo
        downloading.fetch_by_name("breakhis", yes)
    assert len(readers.load("breakhis").table) == 2


SCRIPT = """
import signal
import sys
signal.signal(signal.SIGINT, signal.default_int_handler)  # whoever runs tests in the background has it ignored
from dataclasses import replace
from patholib import cli
from patholib.data.readers.sources import SOURCES
source = SOURCES["breakhis"]
ours = replace(source.files[0], url=sys.argv[1], about=int(sys.argv[2]))
SOURCES["breakhis"] = replace(source, files=(ours,))
sys.exit(cli.main(["download", "breakhis", "--to", sys.argv[3], "--accept-licence"]))
"""


@pytest.mark.parametrize("how", ["killed", "Ctrl-C"])
def test_stopped_in_the_middle_the_command_goes_on_when_it_is_given_again(monkeypatch, project, tmp_path, how):
    if how == "Ctrl-C" and sys.platform == "win32":
        pytest.skip("Windows has no signal that stands for Ctrl-C in one process")
    content, folder = breakhis_archive(), tmp_path / "there"
    with origin(Answer(content, piece=20, pause=0.05), Answer(content)) as server:
        publish(monkeypatch, server, "breakhis", {"BreaKHis_v1.tar.gz": len(content)})
        url = SOURCES["breakhis"].files[0].url
        child = subprocess.Popen(
            [sys.executable, "-c", SCRIPT, url, str(len(content)), str(folder)],
            cwd=ROOT,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        part, deadline = folder / "BreaKHis_v1.tar.gz.part", time.monotonic() + 30
        while not (part.is_file() and part.stat().st_size > 100):
            assert child.poll() is None and time.monotonic() < deadline
            time.sleep(0.01)
        child.kill() if how == "killed" else child.send_signal(signal.SIGINT)
        _, err = child.communicate(timeout=30)
        assert child.returncode == 130 if how == "Ctrl-C" else child.returncode != 0
        assert ("Interrupted" in err) == (how == "Ctrl-C") and "Traceback" not in err
        there = part.stat().st_size
        assert readers.find("breakhis").demo and not (folder / "BreaKHis_v1").exists()
        assert cli.main(["download", "breakhis", "--to", str(folder), "--accept-licence"]) == 0
        assert server.spans[1] == (there, len(content))
    assert len(readers.load("breakhis", folder).table) == 2


def test_another_number_of_images_than_was_published_is_said(breakhis, monkeypatch, capsys):
    monkeypatch.setitem(SOURCES, "breakhis", replace(SOURCES["breakhis"], images=7909))
    downloading.fetch_by_name("breakhis", yes)
    assert "2 images in " in (out := capsys.readouterr().out) and "although 7,909 were published" in out


def test_where_nothing_is_found_the_command_is_named(project, monkeypatch, capsys):
    monkeypatch.setattr(demo, "write", lambda folder, kind, **drawn: folder)
    monkeypatch.setattr(readers, "read", lambda where, missing, **chosen: SimpleNamespace(group_by="case"))
    for kind in downloadable():
        readers.load(kind)
        assert f"`patholib download {kind}`" in capsys.readouterr().out


@pytest.mark.parametrize("kind", downloadable())
def test_the_refusal_of_an_absent_data_set_names_the_command(kind, project):
    with pytest.raises(PathoError, match=f"patholib download {kind}"):
        readers.read(kind)
    with pytest.raises(PathoError, match="patholib download"):
        readers.load(kind, project / "nowhere")


# -------------------------------------------------------------------------------------------------------------- Kaggle


@pytest.fixture
def session(tmp_path, monkeypatch):
    """The folders of a session on Kaggle: what lies in working is kept of it, and nothing else."""
    kaggle = tmp_path / "kaggle"
    for name in ("input", "working"):
        (kaggle / name).mkdir(parents=True)
    monkeypatch.setenv("KAGGLE_KERNEL_RUN_TYPE", "Interactive")
    monkeypatch.setenv("PATHOLIB_MOUNTS", str(kaggle / "input"))
    monkeypatch.setattr(files, "project_root", lambda: kaggle / "working")
    return kaggle


@pytest.mark.parametrize("kind", ["breakhis", "isic2019"])
def test_on_kaggle_a_data_set_is_found_where_it_was_fetched_and_kept_out_of_the_output(request, session, kind, capsys):
    server, folder = request.getfixturevalue(kind.removesuffix("2019")), session / "temp" / kind
    assert cli.main(["download", kind, "--accept-licence"]) == 0
    out = capsys.readouterr().out
    assert f"To {folder}, which ends with this session" in out and f"-p data {folder}" in out
    source, asked = readers.load(kind), len(server.asked)
    assert source.root.is_relative_to(folder) and len(source.table) == 2 and not source.demo
    assert cli.main(["download", kind]) == 0 and len(server.asked) == asked
    assert not list((session / "working").iterdir())


def test_on_kaggle_a_folder_that_is_named_is_used_and_said_to_be_no_passing_one(breakhis, session, capsys):
    cli.main(["download", "breakhis", "--accept-licence", "--to", str(session / "working" / "mine")])
    assert f"To {session / 'working' / 'mine'}\n" in capsys.readouterr().out
    assert readers.load("breakhis", session / "working" / "mine").root.is_relative_to(session / "working")


# ------------------------------------------------------------------------------------------------------------- weights


def test_weights_are_fetched_into_a_folder_to_be_carried(project, monkeypatch, tmp_path, capsys):
    from patholib.model import architectures, weights

    content = b"weights"
    digest = hashlib.sha256(content).hexdigest()
    with origin(Answer(content)) as server:
        for arch, entry in list(architectures.NETWORKS.items()):
            here = replace(entry, weights=server.url(f"{arch}-{digest[:8]}.pth"))
            monkeypatch.setitem(architectures.NETWORKS, arch, here)
        assert cli.main(["download", "weights", "--to", str(tmp_path / "stick")]) == 0
        assert {path.name for path in (tmp_path / "stick").iterdir()} == {
            f"{arch}-{digest[:8]}.pth" for arch in ("resnet50", "efficientnet_b0")
        }
        assert "PATHOLIB_WEIGHTS" in (out := capsys.readouterr().out) and "terms of their own" in out
        assert cli.main(["download", "weights-resnet50"]) == 0
        assert (project / "data" / "weights" / f"resnet50-{digest[:8]}.pth").read_bytes() == content
        monkeypatch.setenv("KAGGLE_KERNEL_RUN_TYPE", "Batch")
        assert cli.main(["download", "weights-resnet18"]) == 0
        assert weights.find_or_fetch("resnet18")[0] == tmp_path / "temp" / "weights" / f"resnet18-{digest[:8]}.pth"


def test_what_is_unknown_is_named_with_what_is_near(capsys):
    for given, meant in (("breakhs", "breakhis"), ("weights-resnet5", "weights-resnet50"), ("isic", "isic2019")):
        assert cli.main(["download", given]) == 2
        assert meant in capsys.readouterr().err
