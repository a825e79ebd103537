"""An archive becomes a folder that is whole, or nothing at all; each attack on that is a row of the catalogue (D39)."""

import errno
import gzip
import io
import os
import shutil
import signal
import stat
import struct
import sys
import tarfile
import zipfile
from pathlib import Path

import numpy as np
import pytest

from patholib.base import files, locks
from patholib.base.errors import PathoError
from patholib.data import archives

HONEST = {
    "set/readme.txt": b"hello\n",
    "set/benign/a 1.png": bytes(range(256)) * 3000,
    "set/benign/Präparat (2).png": b"\0" * 5000,
    "set/malignant/図.png": b"x",
    "set/empty.csv": b"",
    "other/deep/er/than/that.txt": b"deep",
}


@pytest.fixture(autouse=True)
def quiet(monkeypatch):
    """No flush of the whole machine's disks at each of a hundred unpackings."""
    monkeypatch.setattr(os, "sync", lambda: None, raising=False)


def member(name, content=b"x", kind=tarfile.REGTYPE, **fields):
    """A member of a tar, with any field as an attacker would set it."""
    info = tarfile.TarInfo(name)
    info.size, info.type = len(content), kind
    for field, value in fields.items():
        setattr(info, field, value)
    return info, content


def tarred(*members, form=tarfile.PAX_FORMAT) -> bytes:
    """A tar, packed with gzip."""
    return gzip.compress(plain_tar(*members, form=form), 6, mtime=0)


def plain_tar(*members, form=tarfile.PAX_FORMAT) -> bytes:
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w", format=form) as archive:
        for info, content in members:
            archive.addfile(info, io.BytesIO(content))
    return stream.getvalue()


def zipped(*members, method=zipfile.ZIP_DEFLATED) -> bytes:
    """members: (name, content), or (name, content, fields of its ZipInfo)."""
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", method) as archive:
        for name, content, *fields in members:
            info = zipfile.ZipInfo(name)
            info.compress_type = method
            for field, value in dict(*fields).items():
                setattr(info, field, value)
            archive.writestr(info, content)
    return stream.getvalue()


def formats(contents: dict[str, bytes]) -> dict[str, bytes]:
    """The same files in every format."""
    return {
        "tar.gz": tarred(*(member(name, content) for name, content in contents.items())),
        "zip": zipped(*contents.items()),
        "zip, stored": zipped(*contents.items(), method=zipfile.ZIP_STORED),
    }


def unpacked(folder: Path) -> dict[str, bytes]:
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file() and path.name != archives.MARKER
    }


def put(folder: Path, content: bytes) -> Path:
    (folder / "download").write_bytes(content)
    return folder / "download"


def refusal(content: bytes, folder: Path, code: str = "") -> PathoError:
    """What `extract` says to such an archive, after a look that it has left nothing anywhere."""
    archive = put(folder, content)
    with pytest.raises(PathoError) as stopped:
        archives.extract(archive, folder / "out")
    assert stopped.value.code in ((code,) if code else ("bad_archive", "unsafe_archive")), stopped.value
    assert str(stopped.value).isprintable()
    assert list(folder.iterdir()) == [archive]
    return stopped.value


@pytest.mark.parametrize("form", formats({}))
def test_an_honest_archive_becomes_a_folder(tmp_path, form, capsys):
    archive = put(tmp_path, formats(HONEST)[form])
    folder = archives.extract(archive, tmp_path / "data" / "set")
    assert folder == tmp_path / "data" / "set" and unpacked(folder) == HONEST
    assert [path.name for path in folder.parent.iterdir()] == ["set"]
    marker = files.read_json(folder / archives.MARKER)
    assert marker == {
        "archive": "download",
        "bytes": archive.stat().st_size,
        "files": len(HONEST),
        "unpacked_bytes": sum(map(len, HONEST.values())),
    }
    said = capsys.readouterr().out.splitlines()
    assert said[0].startswith("download: unpacking ") and said[1:] == ["download: 6 files, 0.8 MB unpacked into set"]


@pytest.mark.parametrize("form", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_long_names_come_out_of_each_form_of_tar(tmp_path, form):
    name = "/".join(["folder" * 8] * 3 + ["image" * 12 + ".png"])
    tar = tarred(member(name, b"x" * 513), member("a.png"), form=form)
    assert unpacked(archives.extract(put(tmp_path, tar), tmp_path / "out")) == {name: b"x" * 513, "a.png": b"x"}


class Pipe(io.RawIOBase):
    """What can only be written to, so that a zip has its sizes behind the bytes."""

    def __init__(self):
        self.content = b""

    def writable(self):
        return True

    def write(self, more):
        self.content += bytes(more)
        return len(more)


@pytest.mark.parametrize("large", [False, True])
@pytest.mark.parametrize("streamed", [False, True])
def test_a_zip_may_have_its_sizes_behind_the_bytes_and_room_for_large_ones(tmp_path, large, streamed):
    stream = Pipe() if streamed else io.BytesIO()
    with zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in HONEST.items():
            with archive.open(name, "w", force_zip64=large) as target:
                target.write(content)
    content = stream.content if streamed else stream.getvalue()
    assert content[6] & 8 == 8 * streamed
    assert unpacked(archives.extract(put(tmp_path, content), tmp_path / "out")) == HONEST


def test_a_finished_folder_stays_as_it_is(tmp_path, capsys):
    archive = put(tmp_path, zipped(*HONEST.items()))
    folder = archives.extract(archive, tmp_path / "out")
    (folder / "set" / "readme.txt").write_bytes(b"mine")
    capsys.readouterr()
    assert archives.extract(archive, folder) == folder
    archive.rename(tmp_path / "moved")
    assert archives.extract(archive, folder) == folder
    assert (folder / "set" / "readme.txt").read_bytes() == b"mine" and not capsys.readouterr().out
    archive.write_bytes(zipped(("other.txt", b"other")))
    with pytest.raises(PathoError, match="of another archive"):
        archives.extract(archive, folder)
    (folder / archives.MARKER).write_text("[]")
    with pytest.raises(PathoError, match="folder_exists"):
        archives.extract(archive, folder)


@pytest.mark.parametrize("terminal", [True, False])
def test_bars_are_for_who_looks_on_and_a_log_has_two_lines(tmp_path, monkeypatch, capsys, terminal):
    monkeypatch.delenv("TQDM_DISABLE", raising=False)
    monkeypatch.setattr(archives, "watched", lambda: terminal)
    (tmp_path / "set.zip").write_bytes(zipped(("a.txt", b"a")))
    archives.extract(tmp_path / "set.zip", tmp_path / "out")
    out, err = capsys.readouterr()
    assert ("Unpacking " in err) == terminal and len(out.splitlines()) == 2


def test_a_folder_with_anything_in_it_is_left_alone(tmp_path):
    archive, folder = put(tmp_path, zipped(*HONEST.items())), tmp_path / "out"
    folder.mkdir()
    (folder / "mine.txt").write_bytes(b"mine")
    with pytest.raises(PathoError, match="folder_exists"):
        archives.extract(archive, folder)
    with pytest.raises(PathoError, match="folder_exists"):
        archives.extract(archive, folder / "mine.txt")
    assert unpacked(folder) == {"mine.txt": b"mine"}
    (folder / "mine.txt").unlink()
    assert unpacked(archives.extract(archive, folder)) == HONEST


@pytest.mark.skipif(os.name != "posix", reason="rights are another thing on Windows")
def test_rights_owners_and_times_are_not_taken_over(tmp_path):
    fields = {"mode": 0o6777, "uid": 1234, "gid": 1234, "mtime": 1}
    tar = tarred(member("locked", b"", tarfile.DIRTYPE, mode=0o000), member("locked/a.sh", b"#!/bin/sh\n", **fields))
    packed = zipped(("a.sh", b"#!/bin/sh\n", {"external_attr": (stat.S_IFREG | 0o6777) << 16}))
    plain = tmp_path / "plain"
    plain.write_bytes(b"")
    for number, content in enumerate((tar, packed)):
        folder = archives.extract(put(tmp_path, content), tmp_path / str(number))
        (path,) = folder.rglob("a.sh")
        found, usual = path.stat(), plain.stat()
        assert (found.st_mode, found.st_uid, found.st_gid) == (usual.st_mode, usual.st_uid, usual.st_gid)
        assert found.st_mtime > 1e9


def test_dots_and_doubled_slashes_in_honest_names_are_dropped(tmp_path):
    tar = tarred(member("./", b"", tarfile.DIRTYPE), member("./set/", b"", tarfile.DIRTYPE), member("./set//a.png"))
    assert unpacked(archives.extract(put(tmp_path, tar), tmp_path / "out")) == {"set/a.png": b"x"}


NFC, NFD = "pr\u00e4parat.png", "pra\u0308parat.png"
NAMES = {  # what is wrong: the name
    "a name with ../": "../evil.png",
    "a name with ../ further on": "set/../../evil.png",
    "an absolute name": "/etc/evil.png",
    "a network drive": "//host/share/evil.png",
    "a drive letter": "C:/evil.png",
    "a drive letter without a slash": "C:evil.png",
    "a backslash": "set\\..\\evil.png",
    "a device of Windows": "set/nul.png",
    "a name that ends in a dot": "set/evil.png.",
    "a stream of a file": "set/a.png:evil",
    "a terminal code in a name": "set/\x1b[2Jevil.png",
    "a name that is too long": "x" * 256,
    "a path that is too long": "x/" * 600 + "evil.png",
    "the name of the file that marks a finished folder": archives.MARKER,
}
CLASHES = {
    "a name twice": ("set/a.png", "set/a.png"),
    "two names that differ in case": ("set/a.png", "set/A.PNG"),
    "two folders that differ in case": ("set/a.png", "SET/b.png"),
    "a name in NFC and in NFD": (NFC, NFD),
    "a file that is a folder too": ("set", "set/a.png"),
    "a folder that is a file too": ("set/a.png", "set"),
}


@pytest.mark.parametrize("kind", NAMES)
def test_D39_a_name(tmp_path, kind, catalogue):
    name = NAMES[kind]
    for content in (tarred(member("good.png"), member(name)), zipped(("good.png", b"x"), (name, b"x"))):
        seen = refusal(content, tmp_path, "unsafe_archive")
    catalogue("D39", f"an archive with {kind}", seen)


@pytest.mark.parametrize("kind", CLASHES)
@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_D39_two_names_that_are_one_somewhere(tmp_path, kind, catalogue):
    names = CLASHES[kind]
    for content in (tarred(*map(member, names)), zipped(*((name, b"x") for name in names))):
        seen = refusal(content, tmp_path, "unsafe_archive")
    catalogue("D39", f"an archive with {kind}", seen)


def with_pax(**records) -> bytes:
    return tarred(member("first.png"), member("good.png", pax_headers=records))


def negative_size() -> bytes:
    """A header whose size, in the binary form, leads a reader back to where it came from."""
    content = bytearray(plain_tar(member("evil.png", b"x" * 600)))
    content[124:136] = b"\xff" * 10 + struct.pack(">h", -1024)
    content[148:156] = b" " * 8
    content[148:156] = b"%06o\0 " % sum(content[:512])
    return gzip.compress(bytes(content))


TARS = {
    "a symbolic link": tarred(member("evil", b"", tarfile.SYMTYPE, linkname="/etc/passwd")),
    "a symbolic link and a file through it": (
        tarred(member("evil", b"", tarfile.SYMTYPE, linkname=".."), member("evil/a.png"))
    ),
    "a hard link": tarred(member("a.png"), member("b", b"", tarfile.LNKTYPE, linkname="a.png")),
    "a character device": tarred(member("evil", b"", tarfile.CHRTYPE)),
    "a block device": tarred(member("evil", b"", tarfile.BLKTYPE)),
    "a pipe": tarred(member("evil", b"", tarfile.FIFOTYPE)),
    "a kind of its own": tarred(member("evil", b"", b"Z")),
    "a file with holes": (
        with_pax(
            **{"GNU.sparse.major": "0", "GNU.sparse.minor": "1", "GNU.sparse.map": "0,1", "GNU.sparse.size": "1000"}
        )
    ),
    "a name put over another one by a pax header": with_pax(path="../evil.png"),
    "a size put over another one by a pax header": with_pax(size=str(2**40)),
    "a size below zero": negative_size(),
    "headers without end": tarred(*[member("././@LongLink", b"x\0", tarfile.GNUTYPE_LONGNAME)] * 3000),
    "a name that is not UTF-8": tarred(member("pr\udce4parat.png"), form=tarfile.GNU_FORMAT),
    "a file without a name": tarred(member("")),
}


@pytest.mark.parametrize("kind", TARS)
def test_D39_a_tar(tmp_path, kind, catalogue):
    seen = refusal(TARS[kind], tmp_path)
    catalogue("D39", f"a tar with {kind}", seen)


def patched(content: bytes, place: int, form: str, *values) -> bytes:
    """The bytes with numbers written over those at `place`."""
    return content[:place] + struct.pack(form, *values) + content[place + struct.calcsize(form) :]


def central(content: bytes, number: int = 0) -> int:
    """Where the list of a zip has its entry of that number."""
    place = content.index(b"PK\x01\x02")
    for _ in range(number):
        place = content.index(b"PK\x01\x02", place + 4)
    return place


def both(content: bytes, local: int, listed: int, form: str, value: int) -> bytes:
    """A number changed in the header of a zip's first member and in the list."""
    return patched(patched(content, local, form, value), central(content) + listed, form, value)


ONE = zipped(("a.png", b"x" * 1000))
LIES = "a list that does not say what its members say: "
ZIPS = {
    "a symbolic link": zipped(("evil", b"/etc/passwd", {"external_attr": (stat.S_IFLNK | 0o777) << 16})),
    "a device": zipped(("evil", b"", {"external_attr": (stat.S_IFCHR | 0o666) << 16})),
    "a pipe": zipped(("evil", b"", {"external_attr": (stat.S_IFIFO | 0o666) << 16})),
    "a folder that has content": zipped(("evil_", b"x")).replace(b"evil_", b"evil/"),
    "a name with a NUL": zipped(("a_b.png", b"x")).replace(b"a_b", b"a\0b"),
    f"{LIES}a smaller size": patched(ONE, central(ONE) + 24, "<I", 10),
    f"{LIES}another checksum": patched(ONE, central(ONE) + 16, "<I", 7),
    f"{LIES}another name": ONE.replace(b"a.png", b"b.png", 1),
}


@pytest.mark.parametrize("kind", ZIPS)
def test_D39_a_zip(tmp_path, kind, catalogue):
    seen = refusal(ZIPS[kind], tmp_path)
    catalogue("D39", f"a zip with {kind}", seen)


@pytest.mark.parametrize(
    ("kind", "content"),
    [
        ("a zip with a password", both(ONE, 6, 8, "<H", 1)),
        ("a zip whose content does not have its checksum", both(ONE, 14, 16, "<I", 7)),
        (
            "a zip that unpacks to more than both of its sizes say",
            both(zipped(("a.png", bytes(10**7))), 22, 24, "<I", 10),
        ),
        ("a zip without files", zipped()),
        ("a tar without files", tarred()),
        ("an empty file", b""),
        ("text", b"path,label\n" * 100),
        ("a web page", b"<!DOCTYPE html><title>Sign in</title>"),
        ("a rar", b"Rar!\x1a\x07\x01\x00" + bytes(600)),
        ("text in gzip", gzip.compress(b"path,label\n" * 100, mtime=0)),
    ],
)
def test_D39_what_is_no_archive_to_be_read(tmp_path, kind, content, catalogue):
    catalogue("D39", f"{kind}, as an archive", refusal(content, tmp_path, "bad_archive"))


def test_D39_a_bomb(tmp_path, monkeypatch, catalogue):
    zeros = bytes(20_000_000)
    for content in (zipped(("zeros.bin", zeros)), tarred(member("zeros.bin", zeros))):
        monkeypatch.setattr(archives, "FLOOR", 10**7)
        seen = refusal(content, tmp_path, "unsafe_archive")
        monkeypatch.setattr(archives, "FLOOR", len(zeros))
        assert unpacked(archives.extract(put(tmp_path, content), tmp_path / "out"))
        shutil.rmtree(tmp_path / "out")
    catalogue("D39", "an archive of more bytes than are allowed", seen)
    endless = tarfile.TarInfo("zeros.bin")
    endless.size = archives.FLOOR + 1
    seen = refusal(gzip.compress(endless.tobuf()), tmp_path, "unsafe_archive")  # refused before it is read on
    catalogue("D39", "a small archive that announces gigabytes", seen)
    for content in formats({"a/1": b"", "b/2": b"", "c/3": b""}).values():
        monkeypatch.setattr(archives, "MOST", 3)
        seen = refusal(content, tmp_path, "unsafe_archive")
        monkeypatch.setattr(archives, "MOST", 6)
        archives.extract(put(tmp_path, content), tmp_path / "out")
        shutil.rmtree(tmp_path / "out")
    catalogue("D39", "an archive of more files and folders than are allowed", seen)


@pytest.mark.parametrize("form", formats({}))
def test_D39_cut_off_at_any_place(tmp_path, form, catalogue):
    content = formats(HONEST)[form]
    end = len(content) - 1
    for place in (*np.linspace(1, end, 40).astype(int).tolist(), end - 1):
        seen = refusal(content[:place], tmp_path, "bad_archive")
    catalogue("D39", f"an archive cut off at any place ({form})", seen)


@pytest.mark.parametrize("form", formats({}))
def test_D39_a_flipped_bit_is_refused_or_harmless(tmp_path, form, catalogue):
    small = HONEST | {"set/benign/a 1.png": bytes(range(256)) * 4}
    content, rng, refused = formats(small)[form], np.random.default_rng(0), 0
    for place in rng.integers(0, len(content), 150):
        flipped = bytes([content[place] ^ 1 << int(rng.integers(8))])
        archive = put(tmp_path, content[:place] + flipped + content[place + 1 :])
        try:
            found = unpacked(archives.extract(archive, tmp_path / "out"))
            assert found == small
            shutil.rmtree(tmp_path / "out")
        except PathoError as error:
            assert error.code in ("bad_archive", "unsafe_archive"), error
            refused += 1
        assert list(tmp_path.iterdir()) == [archive]
    assert refused > 20
    catalogue("D39", f"an archive with one bit flipped ({form})", "refused, or every file is there as it was")


def test_D39_missing_or_unreadable(tmp_path, monkeypatch, catalogue):
    for path in (tmp_path / "nowhere.zip", tmp_path):
        with pytest.raises(PathoError) as stopped:
            archives.extract(path, tmp_path / "out")
        assert stopped.value.code == "missing_file"
    catalogue("D39", "an archive that is not there, or a folder", stopped.value)
    opened = Path.open

    def forbidden(path, *args, **options):
        if path.name == "download":
            raise PermissionError(errno.EACCES, "Permission denied")
        return opened(path, *args, **options)

    archive = put(tmp_path, ONE)
    monkeypatch.setattr(Path, "open", forbidden)
    with pytest.raises(PathoError) as stopped:
        archives.extract(archive, tmp_path / "out")
    assert stopped.value.code == "unreadable"
    catalogue("D39", "an archive without the right to read it", stopped.value)


def test_D39_no_space(tmp_path, monkeypatch, catalogue):
    """Known before a byte; and, where the disk fills meanwhile, everything is taken away again."""
    content = zipped(*HONEST.items())
    with monkeypatch.context() as patch:
        patch.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(10**6, 0, 700_000))
        catalogue("D39", "an archive that unpacks to more than is free", refusal(content, tmp_path, "no_space"))
    copied = archives._copied

    def full(source, path):
        with files.writable(path):
            if path.name == "a 1.png":
                raise OSError(errno.ENOSPC, "No space left on device")
        return copied(source, path)

    monkeypatch.setattr(archives, "_copied", full)
    refusal(content, tmp_path, "no_space")


KILLS = (
    "before the first file",
    "in the middle of a file",
    "between two files",
    "before the marker",
    "after the marker",
    "after the rename",
)


def killed(archive: Path, folder: Path, place: str) -> None:
    """Unpacks in a process of its own that is killed at `place`."""
    child = os.fork()
    if child:
        _, status = os.waitpid(child, 0)
        assert os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL
        return
    try:

        def die(*_, **__):
            os.kill(os.getpid(), signal.SIGKILL)

        copied = archives._copied

        def dying(source, path):
            if place == "before the first file" or (place == "between two files" and path.name.endswith("2).png")):
                die()
            if place == "in the middle of a file" and path.name == "a 1.png":
                path.write_bytes(source.read(1000))
                die()
            return copied(source, path)

        archives._copied = dying
        if place == "before the marker":
            files.write_json = die
        if place == "after the marker":
            files.into_place = die
        if place == "after the rename":
            files.flush_folder = lambda where: die() if where == folder.parent else None
        archives.extract(archive, folder)
    finally:
        os._exit(1)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="kills need fork")
@pytest.mark.parametrize("place", KILLS)
@pytest.mark.parametrize("form", ["zip", "tar.gz"])
def test_D39_a_kill_leaves_nothing_that_looks_whole_and_the_next_call_starts_over(tmp_path, place, form, catalogue):
    archive, folder = put(tmp_path, formats(HONEST)[form]), tmp_path / "out"
    killed(archive, folder, place)
    assert folder.exists() == (place == "after the rename") != (tmp_path / ".out.part").exists()
    if folder.exists():
        assert unpacked(folder) == HONEST
        return
    killed(archive, folder, place)  # once more, over what the first has left
    assert unpacked(archives.extract(archive, folder)) == HONEST
    assert sorted(path.name for path in tmp_path.iterdir() if path.suffix != ".lock") == ["download", "out"]
    catalogue(
        "D39",
        "killed (SIGKILL) at any moment of unpacking",
        "no folder; the next call removes what is left and starts over",
    )


def test_D39_an_interruption_leaves_nothing(tmp_path, monkeypatch):
    def interrupted(source, path):
        path.write_bytes(source.read(5))
        raise KeyboardInterrupt

    monkeypatch.setattr(archives, "_copied", interrupted)
    archive = put(tmp_path, zipped(*HONEST.items()))
    with pytest.raises(KeyboardInterrupt):
        archives.extract(archive, tmp_path / "out")
    assert list(tmp_path.iterdir()) == [archive]


def test_D39_two_processes_at_once(tmp_path, catalogue):
    archive, beside = put(tmp_path, ONE), tmp_path / ".out.part"
    lock = locks.take(tmp_path / ".out.lock")
    beside.mkdir()
    with pytest.raises(PathoError, match="process") as stopped:
        archives.extract(archive, tmp_path / "out")
    assert stopped.value.code == "folder_locked" and beside.exists()
    catalogue("D39", "an archive that another process is unpacking", stopped.value)
    lock.close()
    assert unpacked(archives.extract(archive, tmp_path / "out")) == {"a.png": b"x" * 1000}
    assert not beside.exists()


@pytest.mark.skipif(sys.platform != "linux", reason="measures the memory of the process as Linux tells it")
def test_a_large_archive_is_never_in_memory(tmp_path):
    import resource

    zeros = np.random.default_rng(0).bytes(2_000_000) * 30
    content = zipped(("a.bin", zeros), method=zipfile.ZIP_STORED)
    archive = put(tmp_path, content)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    archives.extract(archive, tmp_path / "out")
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 20_000
