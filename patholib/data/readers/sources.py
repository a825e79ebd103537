"""What is known of the public data sets besides how to read them: licence, citation, addresses and sizes.

The one place for these facts: downloads, cards, exported models and the documentation take them from here. Neither
BreakHis nor ISIC 2019 publishes a checksum, so none is here. The sizes of ISIC 2019 are those that its users' download
scripts expect; of BreakHis only about how much it is. Nothing is fetched here: see `patholib.data.downloads`.
"""

from __future__ import annotations

from dataclasses import dataclass

ISIC = "https://isic-challenge-data.s3.amazonaws.com/2019/"


@dataclass(frozen=True)
class SourceFile:
    """A file as its makers publish it; an archive is unpacked into a folder beside it, called `folder`."""

    url: str
    about: int  # bytes, about, to plan with
    size: int | None = None  # bytes, where known exactly
    sha256: str = ""  # where its makers state one
    folder: str = ""  # of an archive

    @property
    def name(self) -> str:
        return self.url.rpartition("/")[2]


@dataclass(frozen=True, kw_only=True)
class Source:
    """What a data set's makers ask for, how it was made, and where it is published; an empty field is not known."""

    title: str
    licence: str  # of the images, a sentence or two
    licence_short: str  # the same in a few words, kept in every exported model
    weights: str  # what follows for a model that learnt from the images
    collected: str  # how the images were made
    beyond: str = ""  # use that the images themselves rule out
    cite: tuple[str, ...] = ()
    cite_short: str = ""
    licence_page: str = ""
    page: str = ""  # of its makers
    files: tuple[SourceFile, ...] = ()  # in the order of fetching; that by which the data set is recognised comes last
    images: int | None = None  # as published
    kaggle: str = ""  # owner and name of a copy on Kaggle, made by somebody else
    stated: bool = True  # False: nothing is known, and the authors of a run have to say it


SOURCES = {
    "breakhis": Source(
        title="BreakHis, breast tumour tissue under the microscope",
        licence="For research; copies of the data set state CC BY 4.0. The terms of the place it was taken from hold.",
        licence_short="for research; copies state CC BY 4.0",
        licence_page="https://creativecommons.org/licenses/by/4.0/",
        weights="Research, with the data set named.",
        collected="Slides of the P&D Laboratory in Brazil, stained with haematoxylin and eosin, photographed at four "
        "magnifications; the diagnosis is that of pathologists (Spanhol et al. 2016).",
        beyond="Tissue other than breast, stains other than haematoxylin and eosin, whole slides, other "
        "magnifications.",
        cite=(
            "F. A. Spanhol, L. S. Oliveira, C. Petitjean, L. Heutte: A Dataset for Breast Cancer Histopathological "
            "Image Classification. IEEE Transactions on Biomedical Engineering 63(7), 2016. "
            "doi:10.1109/TBME.2015.2496264",
        ),
        cite_short="Spanhol et al. 2016",
        page="https://web.inf.ufpr.br/vri/databases/breast-cancer-histopathological-database-breakhis/",
        files=(
            SourceFile(
                "http://www.inf.ufpr.br/vri/databases/BreaKHis_v1.tar.gz", about=4_300_000_000, folder="BreaKHis_v1"
            ),
        ),
        images=7909,
        kaggle="ambarish/breakhis",
    ),
    "isic2019": Source(
        title="ISIC 2019, skin lesions under the dermatoscope",
        licence="CC BY-NC 4.0: no commercial use, and the three sources are to be named.",
        licence_short="CC BY-NC 4.0, which excludes commercial use, perhaps also of what was trained on it",
        licence_page="https://creativecommons.org/licenses/by-nc/4.0/",
        weights="Non-commercial, as the images are.",
        collected="Three collections of dermoscopic images from clinics, put together for a challenge; how each "
        "diagnosis was made differs between them (see the three papers).",
        beyond="Photographs taken without a dermatoscope; lesions of other diagnoses. Skin types are not recorded, so "
        "nothing is known about how well it does on each.",
        cite=(
            "P. Tschandl, C. Rosendahl, H. Kittler: The HAM10000 dataset, a large collection of multi-source "
            "dermatoscopic images of common pigmented skin lesions. Scientific Data 5, 180161, 2018. "
            "doi:10.1038/sdata.2018.161",
            "N. C. F. Codella et al.: Skin Lesion Analysis Toward Melanoma Detection: A Challenge at the 2017 "
            "International Symposium on Biomedical Imaging. arXiv:1710.05006, 2017",
            "M. Combalia et al.: BCN20000: Dermoscopic Lesions in the Wild. arXiv:1908.02288, 2019",
        ),
        cite_short="Tschandl et al. 2018 (HAM10000), Codella et al. 2018, Combalia et al. 2019 (BCN20000)",
        page="https://challenge.isic-archive.com/data/#2019",
        files=(
            SourceFile(
                f"{ISIC}ISIC_2019_Training_Input.zip",
                about=9_771_618_190,
                size=9_771_618_190,
                folder="ISIC_2019_Training_Input",
            ),
            SourceFile(f"{ISIC}ISIC_2019_Training_Metadata.csv", about=1_214_351, size=1_214_351),
            SourceFile(f"{ISIC}ISIC_2019_Training_GroundTruth.csv", about=1_291_479, size=1_291_479),
        ),
        images=25331,
        kaggle="andrewmvd/isic-2019",
    ),
}

DEMO = Source(
    title="Demo images, drawn by patholib",
    licence="None is needed: a program drew the pictures, and it is under the MIT licence.",
    licence_short="generated by patholib (MIT)",
    weights="Free to use, and of no use: they know a planted cue and nothing else.",
    collected="Drawn by `patholib.data.demo` with a cue whose best possible AUC is known; nobody was photographed.",
    beyond="Any image but these drawings.",
)

TABLE = "table"  # the source of a manifest that was read from a CSV


def of(name: str | None, demo: bool = False) -> Source:
    """What is known of the images of a manifest with this `source`; for a CSV or an unlisted data set, nothing is."""
    if demo:
        return DEMO
    if name in SOURCES:
        return SOURCES[name]
    return Source(
        title="Your own table of images" if name in (TABLE, "", None) else name,
        licence="Not stated. Ask whoever gave you the images before you pass on images or weights.",
        licence_short="not known: ask who gave you the images",
        weights="Not stated: as the images allow.",
        collected="Not recorded: to be written by the authors.",
        stated=False,
    )


def downloadable() -> tuple[str, ...]:
    """The names of the data sets that can be fetched from their makers."""
    return tuple(name for name, source in SOURCES.items() if source.files)
