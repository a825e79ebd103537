"""Every reader keeps the same promises: a new one is tested by being there, and whoever forgets a place is told so."""

import importlib
import pkgutil

import pytest
from samples import LAYOUTS

from patholib.base.errors import PathoError
from patholib.data import demo, readers
from patholib.data.readers import sources
from patholib.data.readers.reader import Reader


@pytest.fixture(params=readers.READERS)
def reader(request):
    return readers.READERS[request.param]


@pytest.fixture
def layout(reader):
    """What makes a small data set of the reader in a folder, and returns where it begins."""
    assert reader.name in LAYOUTS, f"add a layout of {reader.name} to LAYOUTS in tests/samples.py"
    return LAYOUTS[reader.name]


@pytest.fixture
def begin(layout, tmp_path):
    return layout(tmp_path / "set")


@pytest.fixture
def project(tmp_path, monkeypatch):
    folder = tmp_path / "project"
    folder.mkdir()
    (folder / "pyproject.toml").write_text('[project]\nname = "patholib"\n')
    monkeypatch.chdir(folder)
    monkeypatch.delenv("PATHOLIB_DATA", raising=False)
    monkeypatch.setenv("PATHOLIB_MOUNTS", str(tmp_path / "none"))
    return folder


def test_every_reader_of_the_package_is_registered_under_its_name():
    modules = [
        importlib.import_module(f"{readers.__name__}.{module.name}")
        for module in pkgutil.iter_modules(readers.__path__)
    ]
    written = {
        module.READER.name: module.__name__ for module in modules if isinstance(getattr(module, "READER", None), Reader)
    }
    forgotten = [written[name] for name in written.keys() - readers.READERS.keys()]
    assert not forgotten, f"add the READER of {', '.join(forgotten)} to readers.READERS"
    assert [reader.name for reader in readers.READERS.values()] == list(readers.READERS)


def test_a_reader_takes_its_own_data_set_and_no_other(reader, begin, tmp_path):
    assert reader.holds(begin) and reader.reads(begin)
    for name in LAYOUTS.keys() - {reader.name}:
        other = LAYOUTS[name](tmp_path / name)
        assert not reader.holds(other), f"{reader.name} takes the folder of {name}"
    (tmp_path / "empty").mkdir()
    assert not reader.reads(tmp_path / "empty")


def test_a_folder_is_read_by_the_reader_that_takes_it(reader, begin):
    source = readers.read(begin, missing="skip")
    assert source.source == reader.name and not source.demo and len(source.classes) > 1
    if reader.index:
        assert readers.read(begin / reader.index, missing="skip").table.equals(source.table)


def test_any_recipe_takes_any_data_set_by_its_path(reader, begin, project):
    for kind in readers.KINDS:
        assert readers.load(kind, begin, missing="skip").source == reader.name


def test_a_data_set_is_found_in_the_folder_of_its_name(reader, layout, project):
    layout(project / "data" / reader.name)
    found = readers.find(reader.name)
    assert not found.demo and found.path.is_relative_to(project / "data" / reader.name)
    assert readers.load(reader.name, missing="skip").source == reader.name


def test_without_images_there_are_demo_images_or_an_error_that_says_where_they_were_looked_for(
    reader, project, monkeypatch
):
    if reader.name not in demo.DEFAULTS:
        with pytest.raises(PathoError, match="data_root") as refusal:
            readers.load(reader.name)
        assert str(project / "data" / reader.name) in refusal.value.reason
    with pytest.raises(PathoError, match="data_root") as refusal:
        readers.read(reader.name)
    assert ("patholib download" in refusal.value.remedy) == (reader.name in sources.downloadable())


def test_facts_and_demo_layouts_belong_to_readers():
    assert sources.SOURCES.keys() <= readers.READERS.keys() and demo.DEFAULTS.keys() <= readers.READERS.keys()


def test_a_data_set_without_facts_is_called_by_its_name_and_its_licence_is_not_stated():
    assert sources.of("breakhis").licence_short and not sources.of("breakhis", demo=True).licence.startswith("For")
    unknown = sources.of("another")
    assert unknown.title == "another" and not unknown.stated and "Ask" in unknown.licence
    assert sources.of("table").title == "Your own table of images"
