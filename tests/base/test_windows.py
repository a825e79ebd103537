"""What can be known of Windows elsewhere: nothing is called that it lacks; what it refuses is waited for or told."""

from __future__ import annotations

import ast
import json
import os
import shutil
import subprocess
import sys
import threading
from pathlib import Path, PureWindowsPath

import pandas as pd
import pytest

from patholib.base import files
from patholib.base.errors import PathoError
from patholib.data import archives, demo
from patholib.data.readers import table
from patholib.deploy.server import sandbox

pytestmark = pytest.mark.heavy

ROOT = Path(__file__).parents[2]
linux = pytest.mark.skipif(sys.platform != "linux", reason="Windows is played on Linux, which tells what is open")

# Names that Python has on POSIX alone, each with where it may stand and why Windows never comes there.
POSIX = {
    "os": {
        "fork",
        "forkpty",
        "sync",
        "posix_fallocate",
        "sched_getaffinity",
        "sched_setaffinity",
        "mkfifo",
        "mknod",
        "chown",
        "getuid",
        "geteuid",
        "getgid",
        "getegid",
        "setsid",
        "killpg",
        "wait3",
        "wait4",
        "statvfs",
        "uname",
        "nice",
        "getloadavg",
        "pread",
        "pwrite",
        "O_NOFOLLOW",
        "O_CLOEXEC",
        "O_DIRECTORY",
        "register_at_fork",
        "posix_fadvise",
        "sendfile",
        "WIFSIGNALED",
        "WTERMSIG",
        "getpgid",
        "sysconf",
    },
    "signal": {
        "SIGKILL",
        "SIGHUP",
        "SIGUSR1",
        "SIGUSR2",
        "SIGALRM",
        "SIGCHLD",
        "SIGPIPE",
        "SIGQUIT",
        "alarm",
        "setitimer",
        "pthread_sigmask",
        "pause",
        "sigwait",
    },
    "time": {"tzset", "clock_gettime"},
    "socket": {"AF_UNIX", "SO_REUSEPORT"},
}
MODULES = {"fcntl", "resource", "pwd", "grp", "termios", "tty", "pty", "syslog", "multiprocessing", "posix"}
GUARDED = {
    ("data/archives", "os.sync"),
    ("data/caching", "os.posix_fallocate"),  # hasattr
    ("base/cpu", "os.sched_getaffinity"),  # hasattr
    ("deploy/server/sandbox", "resource"),
}  # whose absence is caught


def lacking(tree: ast.AST) -> set[str]:
    """What the code names that Windows has not, and processes that are made as only POSIX makes them."""
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
            if node.attr in POSIX.get(node.value.id, ()):
                found.add(f"{node.value.id}.{node.attr}")
        elif isinstance(node, ast.Import):
            found |= {alias.name.partition(".")[0] for alias in node.names} & MODULES
        elif isinstance(node, ast.ImportFrom):
            found |= {(node.module or "").partition(".")[0]} & MODULES
        elif isinstance(node, ast.keyword) and node.arg in ("preexec_fn", "pass_fds"):
            found.add(node.arg)
    return found


def test_no_module_calls_what_windows_lacks_but_where_that_is_asked_first():
    found = {
        (path.relative_to(ROOT / "patholib").with_suffix("").as_posix(), name)
        for path in (ROOT / "patholib").rglob("*.py")
        for name in lacking(ast.parse(path.read_text(encoding="utf-8")))
    }
    assert found == GUARDED


def test_what_windows_lacks_is_found():
    code = (
        "import fcntl, multiprocessing.pool\nfrom resource import setrlimit\nos.fork()\n"
        "os.kill(1, signal.SIGKILL)\nsubprocess.Popen([], preexec_fn=f)"
    )
    assert lacking(ast.parse(code)) == {
        "fcntl",
        "multiprocessing",
        "resource",
        "os.fork",
        "signal.SIGKILL",
        "preexec_fn",
    }


@linux
def test_the_whole_pipeline_works_where_only_spawn_exists_and_nothing_open_is_replaced(tmp_path):
    import windows

    place = tmp_path / "Präparate Ω 図"  # a name that the console there cannot show
    ended = windows.there(place, *windows.PIPELINE, str(place), timeout=600)
    refused = tmp_path / "refused.txt"
    assert not refused.exists(), refused.read_text(encoding="utf-8")
    assert ended.returncode == 0, ended.stderr.decode(errors="replace")[-4000:]


@linux
@pytest.mark.slow
def test_a_notebook_runs_there_too(tmp_path):
    import windows

    notebook = ROOT / "notebooks" / "breakhis" / "train.ipynb"
    ended = windows.there(
        tmp_path / "out",
        "-m",
        "papermill",
        str(notebook),
        "out.ipynb",
        "-k",
        "python3",
        "-p",
        "epochs",
        "1",
        "-p",
        "image_size",
        "32",
        "-p",
        "data",
        "demo",
        timeout=1200,
    )
    refused = tmp_path / "refused.txt"
    assert not refused.exists(), refused.read_text(encoding="utf-8")
    assert ended.returncode == 0, ended.stderr.decode(errors="replace")[-4000:]


TRIED = {  # what is done there: how it is refused
    "f = write('a'); os.replace('a', 'b')": "being used",
    "f = write('a'); write('c').close(); os.replace('c', 'a')": "being used",
    "f = write('a'); os.remove('a')": "being used",
    "m = np.lib.format.open_memmap('m', 'w+', shape=(9,)); write('c').close(); os.replace('c', 'm')": "being used",
    "os.mkdir('d'); f = write('d/a'); os.rename('d', 'e')": "being used",
    "os.mkdir('f'); write('f/a').close(); os.rename('f', 'g'); os.remove('g/a')": "",
    "write('a:b')": "Invalid argument",
    "os.mkdir('con')": "Invalid argument",
    "write('a. ')": "Invalid argument",
    "write('a' * 230)": "cannot find the path",
    "import fcntl": "fcntl",
    "os.fork()": "no attribute 'fork'",
    "print('Ω')": "charmap",
    "multiprocessing.set_start_method('fork')": "already been set",
}
TRY = """
import json, multiprocessing, os, sys
import numpy as np

for code in json.loads(sys.argv[1]):
    try:
        exec(code, {**globals(), "write": lambda name: open(name, "w", encoding="utf-8")})
        print("done")
    except Exception as error:
        print(ascii(str(error)))
"""


@linux
def test_the_windows_that_is_played_refuses_what_it_should(tmp_path):
    import windows

    ended = windows.there(tmp_path / "place", "-c", TRY, json.dumps(list(TRIED)), text=True)
    said = ended.stdout.splitlines()
    assert len(said) == len(TRIED), ended.stderr
    for (code, answer), got in zip(TRIED.items(), said, strict=True):
        assert (answer in got) if answer else got == "done", (code, got)


# --- files that somebody has open ---


def in_use(number=32):
    """The error of Windows for a file that another program has open."""
    error = PermissionError(13, "The process cannot access the file because it is being used by another process")
    error.winerror = number
    return error


@pytest.fixture
def refusing(monkeypatch):
    """`refusing(error, n)`: the next n renames fail with that error; how often was tried is counted in the list."""
    tried, real = [], Path.replace
    monkeypatch.setattr(files.time, "sleep", lambda seconds: tried.append(seconds))

    def refuse(error, times):
        def replace(path, target):
            if len(tried) < times:
                raise error
            return real(path, target)

        monkeypatch.setattr(Path, "replace", replace)
        return tried

    return refuse


@pytest.mark.parametrize("number", files.IN_USE)
def test_a_file_that_is_open_for_a_moment_is_waited_for(tmp_path, refusing, number):
    files.write_text(tmp_path / "a.csv", "old")
    waited = refusing(in_use(number), 3)
    files.write_text(tmp_path / "a.csv", "new")
    assert len(waited) == 3 and (tmp_path / "a.csv").read_text() == "new"


def test_a_file_that_stays_open_is_told_with_the_remedy_and_nothing_is_left_beside_it(tmp_path, refusing):
    waited = refusing(in_use(), 1000)
    with pytest.raises(PathoError, match="output_unwritable") as caught:
        files.write_text(tmp_path / "predictions.csv", "new")
    assert caught.value.subject.endswith("predictions.csv")
    assert sum(waited) < 2 and list(tmp_path.iterdir()) == []


def test_on_other_systems_no_right_to_write_is_told_at_once(tmp_path, refusing):
    waited = refusing(PermissionError(13, "Permission denied"), 1)
    with pytest.raises(PathoError, match="output_unwritable"):
        files.write_text(tmp_path / "a.csv", "new")
    assert waited == []


def test_folders_are_waited_for_as_well(tmp_path, refusing):
    waited = refusing(in_use(5), 2)
    demo.write(tmp_path / "demo", "isic2019", groups=24, images_per_group=1, size=(64, 64))
    assert len(waited) == 2 and (tmp_path / "demo" / "DEMO.json").is_file()
    shutil.make_archive(str(tmp_path / "set"), "zip", tmp_path / "demo")
    waited.clear()
    archives.extract(tmp_path / "set.zip", tmp_path / "unpacked")
    assert len(waited) == 2 and (tmp_path / "unpacked" / "DEMO.json").is_file()


@pytest.mark.parametrize("number", files.TOO_LONG)
def test_a_path_that_is_too_long_is_told_as_that_and_not_as_missing(number):
    error = FileNotFoundError(2, "The system cannot find the path specified")
    error.winerror = number
    long = Path("/", *["a-folder-with-a-long-name"] * 10, "p.csv")
    told = files.unwritable(long, error)
    assert str(len(str(long))) in told.reason  # how long it is
    assert "characters" not in files.unwritable(Path("/short.csv"), error).reason


# --- locks, processes, paths ---


def test_ctrl_c_in_a_console_is_for_the_server_and_not_for_its_decoders(monkeypatch):
    monkeypatch.setattr(subprocess, "CREATE_NEW_PROCESS_GROUP", 512, raising=False)
    given = []

    class Process:
        pid, stdin, stdout = 1, open(os.devnull, "wb"), open(os.devnull, "rb")  # noqa: PTH123

        def __init__(self, command, **options):
            given.append(options["creationflags"])

        def kill(self):
            self.stdin.close()

        wait = kill

    monkeypatch.setattr(subprocess, "Popen", Process)
    sandbox.Decoder(32).close()
    assert given == [512, 512]


@pytest.mark.parametrize(
    ("text", "path"),
    [
        (r"benign\a 1.png", "benign/a 1.png"),
        (r".\benign\\a.png", "benign/a.png"),
        ("benign/../a.png", "a.png"),
        (r"D:\set\benign\a.png", "benign/a.png"),
        (r"d:\SET\a.png", "a.png"),
        ("D:/set/a.png", "a.png"),
        (r"E:\other\a.png", "E:/other/a.png"),
        (r"\\server\share\a.png", "//server/share/a.png"),
    ],
)
def test_paths_of_a_table_are_read_there_as_they_are_meant(monkeypatch, text, path):
    monkeypatch.setattr(table, "Path", PureWindowsPath)
    assert table._paths("mine.csv", pd.DataFrame({"path": [text]}), PureWindowsPath(r"D:\set")) == [path]


@pytest.mark.parametrize("text", ["/home/me/a.png", r"\a.png", "D:a.png", r"..\a.png", r"benign\..\..\a.png"])
def test_paths_that_mean_another_place_there_are_refused(monkeypatch, text):
    monkeypatch.setattr(table, "Path", PureWindowsPath)
    with pytest.raises(PathoError, match="path_outside_root"):
        table._paths("mine.csv", pd.DataFrame({"path": [text]}), PureWindowsPath(r"D:\set"))


def test_the_cores_are_counted_where_no_system_call_says_which_may_be_used(monkeypatch):
    from patholib.base import cpu

    monkeypatch.delattr(os, "sched_getaffinity", raising=False)
    monkeypatch.setattr(os, "cpu_count", lambda: 6)
    assert cpu.cores() == cpu.threads(None) == 6
    monkeypatch.setattr(os, "cpu_count", lambda: None)
    assert cpu.cores() == 1
    before = threading.active_count()
    assert list(cpu.in_order(lambda item: item * 2, range(9), cpu.threads(None), 3)) == [*range(0, 18, 2)]
    assert threading.active_count() == before
