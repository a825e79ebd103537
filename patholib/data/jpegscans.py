"""JPEG decoded so that lost picture data is noticed: libjpeg fills what is missing with grey and says nothing.

libjpeg stops for more bytes when it has used up what it was given. A scan is given to it up to its end, and then one
byte more: between two markers this byte is skipped, inside a picture it is kept until enough have come to go on. So
the number of bytes left over tells whether the scan held all of its blocks, too few or too many.
"""

from __future__ import annotations

import re
from typing import NamedTuple

from PIL import Image

SEGMENTS = 5000  # before and between scans; a large colour profile takes 255
SCANS = 64  # each is a pass over the whole picture; encoders write about ten
PROBED = 1000  # ends of restart intervals at which to look
SPARE = 12  # bytes: a scan that is complete so long before its end has too many; below it is padding of some cameras
ZEROS = 64  # so many zero bytes are no code of a picture, where zero bits do not mean "nothing more"
COLLECTED = 128  # ... of a scan that adds bits to known values: an encoder writes up to 1,000 of them behind one code
FILL = b"\xff\0" * 8  # bits after the end of a scan, for a decoder that reads ahead; all ones are no code (T.81, C.2)
MARKER = re.compile(rb"\xff[^\x00\xff]", re.DOTALL)  # begins with a plain byte: searched ten times as fast as \xff+


class Flood(ValueError):
    """More parts than any camera or program writes: decoding them would take minutes."""


class Scan(NamedTuple):
    """One pass over the picture."""

    intervals: list[tuple[int, int]]  # where the data between restart markers begins and ends, in the file
    sequential: bool  # not progressive
    header: bytes  # of its marker, without length
    zeros: int  # so many zero bytes must not stand in it; 0: any number may
    in_order: bool  # of the restart markers


def outline(content: bytes) -> tuple[int, tuple[Scan, ...]]:
    """The offset behind the end marker of the first picture, and its scans; thumbnails lie in skipped segments.

    Errors: ValueError where the file ends too early; Flood.
    """
    scans: list[Scan] = []
    first_codes: dict[int, int] = {}
    at, segments, frame = 2, 0, 0
    while found := MARKER.search(content, at):
        marker, at = content[found.end() - 1], found.end()
        if marker == 0xD9:
            return at, tuple(scans) if frame in (0xC0, 0xC1, 0xC2) else ()  # other codes cannot be interrupted
        if marker in (0x01, *range(0xD0, 0xD9)):  # these have no length
            continue
        segments += 1
        start, at = at, at + int.from_bytes(content[at : at + 2], "big")
        if marker == 0xC4:
            first_codes |= _first_codes(content[start + 2 : at])
        elif marker & 0xF0 == 0xC0 and marker != 0xCC:
            frame = marker
        elif marker == 0xDA:
            header = content[start + 2 : at]
            at, intervals, in_order = _intervals(content, at)
            scans.append(Scan(intervals, frame != 0xC2, header, _zeros(header, first_codes, frame != 0xC2), in_order))
        if segments > SEGMENTS or len(scans) > SCANS:
            raise Flood(f"more than {SCANS} scans" if len(scans) > SCANS else f"more than {SEGMENTS:,} segments")
    raise ValueError("it ends too early")


def _intervals(content: bytes, at: int) -> tuple[int, list[tuple[int, int]], bool]:
    """The marker behind the scan that begins at `at`, its restart intervals, and whether they are in order."""
    intervals, in_order = [], True
    for found in MARKER.finditer(content, at):
        marker, end = content[found.end() - 1], found.start()
        intervals.append((at, end))
        if not 0xD0 <= marker <= 0xD7:
            return end, intervals, in_order
        in_order &= marker - 0xD0 == (len(intervals) - 1) % 8
        at = found.end()
    return len(content), intervals, in_order  # cut off: no end marker will be found


def _first_codes(tables: bytes) -> dict[int, int]:
    """What the code of zero bits means in each Huffman table of a segment, by class and number of the table."""
    found, at = {}, 0
    while at + 17 < len(tables):
        found[tables[at]] = tables[at + 17]
        at += 17 + sum(tables[at + 1 : at + 17])
    return found


def _zeros(header: bytes, first_codes: dict[int, int], sequential: bool) -> int:
    """How many zero bytes no sound scan holds; 0 where zero bits mean "no more values in this block"."""
    if not header or len(header) < 2 * header[0] + 4:
        return 0
    tables = header[2 : 2 * header[0] + 1 : 2]  # of each component: that of its mean, that of its details
    if sequential:
        return 0 if all(first_codes.get(16 + (table & 15), 0) & 15 == 0 for table in tables) else ZEROS
    if header[-3] == 0:  # the means of blocks
        return 0
    return COLLECTED if header[-1] >> 4 else ZEROS  # blocks without details are counted, not written one by one


def _lacks_bits(scans: tuple[Scan, ...], components: int) -> bool:
    """Whether scans that add details are missing, as where a file was cut off between two. Errors: ValueError."""
    lowest: dict[int, bytearray] = {}  # of each component: the lowest bit that was sent of each coefficient
    lacking, means = False, set[int]()  # the components of which the means of blocks were sent
    for scan in scans:
        first, last, bits = (0, 63, 0) if scan.sequential else scan.header[-3:]
        for component in scan.header[1:-3:2]:
            means |= {component} if first == 0 and bits >> 4 == 0 else set()
            sent, count = lowest.setdefault(component, bytearray(b"\xff" * 64)), last + 1 - first
            lacking |= sent[first : last + 1] != bytes([bits >> 4 or 255]) * count  # it adds to what is not there
            sent[first : last + 1] = bytes([bits & 15]) * count
    if len(means) < components:
        raise ValueError("part of the picture is missing")
    return lacking or any(map(any, lowest.values()))


def load(image: Image.Image, content: bytes, end: int, scans: tuple[Scan, ...]) -> tuple[bool, bool]:
    """Decodes the picture whose header was read; whether it has more data than it needs, and whether it lacks details.

    Errors: ValueError where picture data is missing or damaged; OSError of the decoder.
    """
    lacking = bool(scans) and _lacks_bits(scans, len(image.getbands()))
    if any(not scan.in_order for scan in scans):
        raise ValueError("parts of the picture are missing")
    if any(s.zeros and content.find(bytes(s.zeros), s.intervals[0][0], s.intervals[-1][1]) >= 0 for s in scans):
        raise ValueError("picture data is overwritten with zeros")
    image.load_prepare()  # type: ignore[attr-defined]  # of ImageFile
    ((name, extents, _, settings),) = image.tile  # type: ignore[attr-defined]
    decoder = Image._getdecoder(image.mode, name, settings, image.decoderconfig)  # type: ignore[attr-defined]
    try:
        decoder.setimage(image.im, extents)
        too_much = _fed(_Feed(decoder), content, end, scans)
    finally:
        decoder.cleanup()
    image.tile = []  # type: ignore[attr-defined]  # so Pillow takes it as loaded
    return too_much, lacking


class _Feed:
    """A decoder and the bytes that it has not taken yet."""

    def __init__(self, decoder):
        self.decoder, self.rest, self.done = decoder, b"", False

    def __call__(self, content: bytes) -> bool:
        """Gives it more bytes; whether any are left over."""
        if not self.done:
            self.rest += content
            taken, error = self.decoder.decode(self.rest)
            self.done, self.rest = taken < 0, self.rest[max(taken, 0) :]
            if error < 0:
                raise OSError("the decoder found an error")
        return bool(self.rest) and not self.done

    def inside(self, content: bytes) -> bool:
        """Whether it is inside a scan: then it takes no two single bytes one after the other."""
        return any([self(content[:1]), self(content[1:2])])


def _fed(feed: _Feed, content: bytes, end: int, scans: tuple[Scan, ...]) -> bool:
    """Whether any scan holds too much. Errors: ValueError where one holds too little."""
    at, too_much = 0, False
    for scan in scans:
        for start, stop in scan.intervals[:: -1 - len(scan.intervals) // PROBED][::-1]:
            if stop - start > 2 * SPARE:
                feed(content[at : stop - SPARE])
                too_much |= not feed.inside(content[stop - SPARE : stop - SPARE + 2])
                at = stop - SPARE + 2
            feed(content[at:stop])
            feed(FILL)
            if feed.inside(b"\0\0"):
                raise ValueError("part of the picture is missing")
            at = stop
    at_once = len(scans) == 1 and scans[0].sequential  # else pixels come only after the end marker
    if not at_once:
        feed(content[at:end])
    if not feed.done:
        raise ValueError("part of the picture is missing")
    return too_much
