"""Data sets and ImageNet weights from where their makers publish them, fetched only when asked for by name.

Images are downloaded here only; weights also by `building.build`, for a recipe that names them.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

from patholib.base import files, places
from patholib.base.errors import PathoError
from patholib.data import archives, fetch, readers
from patholib.data.readers.sources import SOURCES, Source, SourceFile


def dataset(kind: str, agree: Callable[[str], bool], folder: str | Path | None = None, remove: bool = False) -> Path:
    """The folder of a whole data set: what is missing is fetched, unpacked and read once.

    agree: gets the licence and the citation and returns whether they are accepted; nothing is fetched before.
    folder: by default <kind> in `files.remade`, where `readers.load` finds it.
    remove: deletes an archive once it is unpacked.
    Errors: licence_not_accepted, folder_exists, those of `fetch.fetch`, `archives.extract`
    and of the reader.
    """
    source = SOURCES[kind]
    usual = _found(kind) if folder is None else None
    folder = files.given(folder or files.remade() / kind).absolute()
    missing = [file for file in source.files if not _there(file, folder)]
    place = usual or _found(kind, folder)
    if place and (place != folder or not missing or source.files[-1] in missing):  # and so not half fetched by this
        print(f"{source.title}: is there already" + ("; --to FOLDER fetches it a second time" if usual else ""))
        return _read(source, place)
    _refuse_foreign(missing, folder)
    _check_space(missing, folder)
    if not agree(terms(kind, folder)):
        raise PathoError(
            "licence_not_accepted",
            source.title,
            "is not fetched before its licence is accepted",
            "Read it above, and call again with --accept-licence",
        )
    _fetch_and_unpack(missing, folder, remove)
    return _read(source, folder)


def _fetch_and_unpack(missing: list[SourceFile], folder: Path, remove: bool) -> None:
    for file in missing:
        path = fetch.fetch(
            fetch.Remote(file.url, file.name, file.size, file.sha256), folder, room=file.about if file.folder else 0
        )
        if file.folder:
            _unpack(path, folder / file.folder)
        if file.folder and remove:
            path.unlink()
            print(f"{file.name}: removed")
        elif file.folder:
            print(f"{file.name}: {path.stat().st_size / 1e6:,.1f} MB, kept; it may be deleted, all is unpacked")


def _unpack(archive: Path, folder: Path) -> None:
    """Unpacks; a damaged archive, as a power cut may leave one, is set aside."""
    try:
        archives.extract(archive, folder)
    except PathoError as error:
        if error.code != "bad_archive":
            raise
        bad = archive.replace(archive.with_name(f"{archive.name}.bad"))
        reason = f"{error.reason}; it is kept as {bad.name} and not used"
        raise PathoError(error.code, archive.name, reason, "Call again to have it fetched anew") from error


def terms(kind: str, folder: Path) -> str:
    """What to know before a data set is fetched: licence, citation, sources and sizes."""
    source = SOURCES[kind]
    lines = [
        source.title,
        f"Licence: {source.licence} {source.licence_page}",
        *[f"Cite: {text}" for text in source.cite],
        f"Its makers' page: {source.page}",
        *[
            f"From {file.url}, about {file.about / 1e6:,.0f} MB" + ("" if file.sha256 else ", no checksum published")
            for file in source.files
        ],
    ]
    passing = places.host() == "Kaggle" and folder.is_relative_to(files.remade())
    return "\n".join(
        [*lines, f"To {folder}" + (", which ends with this session: attached data stay" if passing else "")]
    )


def _found(kind: str, place: str | Path = "auto") -> Path | None:
    """Where the data set lies already: at `place`, or in the usual ones."""
    try:
        return readers.find(kind, place).path
    except PathoError:  # that place, or the one that PATHOLIB_DATA names, does not hold it (yet)
        return None


def _there(file: SourceFile, folder: Path) -> bool:
    """Whether nothing is left to do for a file: fetched or, an archive, unpacked to its end."""
    return (folder / file.folder / archives.MARKER if file.folder else folder / file.name).is_file()


def _refuse_foreign(missing: list[SourceFile], folder: Path) -> None:
    """Stops before gigabytes are fetched for a folder that is not empty."""
    for place in (folder / file.folder for file in missing if file.folder):
        if place.exists() and not (place.is_dir() and not any(place.iterdir())):
            raise PathoError(
                "folder_exists",
                str(place),
                "holds something that was not unpacked here",
                "Use it as it is, or name another folder with --to",
            )


def _check_space(missing: list[SourceFile], folder: Path) -> None:
    """Stops where the disk cannot hold what is missing, archives a second time, unpacked."""
    wanted = 0
    for file in missing:
        here = [path.stat().st_size for path in (folder / file.name, folder / f"{file.name}.part") if path.is_file()]
        wanted += max(file.about - sum(here), 0) + (file.about if file.folder else 0)
    nearest_there = next(place for place in (folder, *folder.parents) if place.exists())
    if wanted > (free := shutil.disk_usage(nearest_there).free):
        raise fetch.no_space(folder, wanted, free)


def _read(source: Source, folder: Path) -> Path:
    """Reads what is there, as a training would, and says what it found."""
    images = len(readers.read(folder).table)
    odd = "" if source.images in (None, images) else f", although {source.images:,} were published"
    print(f"{source.title}: {images:,} images in {folder}{odd}. Train on them: -p data {folder}")
    return folder
