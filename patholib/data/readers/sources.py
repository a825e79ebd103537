"""Where the public data sets come from: addresses, sizes, licences and citations, a table of facts.

Neither publishes a checksum, so none is here. The sizes of ISIC 2019 are those that its users' download scripts expect;
of BreakHis only about how much it is. Nothing is fetched here: see `patholib.data.downloads`.
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


@dataclass(frozen=True)
class Source:
    """A data set: where its makers publish it, under which licence, and how it is cited."""

    title: str
    page: str  # of its makers
    files: tuple[SourceFile, ...]  # in the order in which they are fetched: that by which it is recognised comes last
    images: int  # as published
    kaggle: str  # owner and name of a copy on Kaggle, made by somebody else
    licence: str  # a sentence or two
    licence_page: str
    cite: tuple[str, ...]


SOURCES = {
    "breakhis": Source(
        title="BreakHis, breast tumour tissue under the microscope",
        page="https://web.inf.ufpr.br/vri/databases/breast-cancer-histopathological-database-breakhis/",
        files=(SourceFile("http://www.inf.ufpr.br/vri/databases/BreaKHis_v1.tar.gz", about=4_300_000_000,
                          folder="BreaKHis_v1"),),
        images=7909, kaggle="ambarish/breakhis",
        licence="For research; copies of the data set state CC BY 4.0. The terms of the place it was taken from hold.",
        licence_page="https://creativecommons.org/licenses/by/4.0/",
        cite=("F. A. Spanhol, L. S. Oliveira, C. Petitjean, L. Heutte: A Dataset for Breast Cancer Histopathological "
              "Image Classification. IEEE Transactions on Biomedical Engineering 63(7), 2016. "
              "doi:10.1109/TBME.2015.2496264",)),
    "isic2019": Source(
        title="ISIC 2019, skin lesions under the dermatoscope",
        page="https://challenge.isic-archive.com/data/#2019",
        files=(SourceFile(f"{ISIC}ISIC_2019_Training_Input.zip", about=9_771_618_190, size=9_771_618_190,
                          folder="ISIC_2019_Training_Input"),
               SourceFile(f"{ISIC}ISIC_2019_Training_Metadata.csv", about=1_214_351, size=1_214_351),
               SourceFile(f"{ISIC}ISIC_2019_Training_GroundTruth.csv", about=1_291_479, size=1_291_479)),
        images=25331, kaggle="andrewmvd/isic-2019",
        licence="CC BY-NC 4.0: no commercial use, and the three sources are to be named.",
        licence_page="https://creativecommons.org/licenses/by-nc/4.0/",
        cite=("P. Tschandl, C. Rosendahl, H. Kittler: The HAM10000 dataset, a large collection of multi-source "
              "dermatoscopic images of common pigmented skin lesions. Scientific Data 5, 180161, 2018. "
              "doi:10.1038/sdata.2018.161",
              "N. C. F. Codella et al.: Skin Lesion Analysis Toward Melanoma Detection: A Challenge at the 2017 "
              "International Symposium on Biomedical Imaging. arXiv:1710.05006, 2017",
              "M. Combalia et al.: BCN20000: Dermoscopic Lesions in the Wild. arXiv:1908.02288, 2019")),
}
