"""Groups drawn at random for the parts of a split: every class in every part, and the shares within a tolerance."""

from __future__ import annotations

import functools
import hashlib
from collections import Counter

import numpy as np

DRAWS = 64  # for the groups of one class; if none is within the tolerance, the nearest is taken
ATTEMPTS = 10  # whole draws before a class that chance leaves out of a part is put there
FINEST = 0.005  # of the images of a class: no share has to be nearer


def assign(counts: np.ndarray, fractions, groups: np.ndarray, key: str) -> np.ndarray | None:
    """The part (0, 1, ...) of every group, one per fraction, from its images per class (G, C); a function of the key.

    None if there is no way to have every class in every part.

    Rerandomisation: what is random stays random, only draws that are out of balance are drawn again (Morgan & Rubin
    2012, Ann. Statist. 40, 1263). Choosing the best of all splits instead would give nearly the same one for each key.
    - Each part gets its fraction of the groups of a class, rounded up or down by chance, and at least one group.
    - Of the images of a class, a part has its fraction give or take the largest group of the class (or 0.5 %), but at
      least half of the fraction and at most twice it. A narrower tolerance would keep large groups out of small parts;
      at this one they are tested nearly as often as others, unless they alone are more than twice the fraction.
    - If no draw is within the tolerance, the nearest of 64 is taken.
    """
    counts = np.asarray(counts)
    if ((counts > 0).sum(axis=0) < len(fractions)).any():
        return None
    for attempt in range(ATTEMPTS):
        keys = _keys(groups, f"{key}/{attempt}")
        place = _drawn(counts, np.asarray(fractions), keys)
        if all(counts[place == s].any(axis=0).all() for s in range(len(fractions))):
            return place
    seats = _seats(counts > 0, np.argsort(keys[0], kind="stable").tolist(), len(fractions))
    if seats is None:
        return None
    place[list(seats)] = list(seats.values())
    return place


def _keys(groups: np.ndarray, key: str) -> np.ndarray:
    """Random integers (DRAWS, G): each row orders the groups for one draw.

    A hash, not a generator: the same for every version of numpy, and new groups do not stir up the old ones.
    """
    digests = (hashlib.shake_128(f"{key}:{group}".encode()).digest(8 * DRAWS) for group in groups)
    return np.frombuffer(b"".join(digests), "<u8").reshape(len(groups), DRAWS).T.copy()


def _drawn(counts: np.ndarray, fractions: np.ndarray, keys: np.ndarray) -> np.ndarray:
    """One draw, class after class; a group counts as of the class of which it holds the largest share."""
    place = np.empty(len(counts), np.int64)
    total = counts.sum(axis=0)
    step = np.maximum(counts.max(axis=0), FINEST * total)
    main = (counts / total).argmax(axis=1)
    held, due = np.zeros((2, len(fractions), len(total)))  # images of every class in every part: drawn so far, wanted
    for c in range(len(total)):
        mine = np.flatnonzero(main == c)
        wanted = np.maximum(fractions, 1 / np.count_nonzero(counts[:, c]))  # at least one group each
        wanted = wanted / wanted.sum()
        most = wanted[:, None] * total
        above, below = np.minimum(step, most), np.minimum(step, most / 2)
        due = due + wanted[:, None] * counts[mine].sum(axis=0)
        best = np.inf
        for row in keys[:, mine]:
            part = _dealt(row, wanted)
            found = held + [counts[mine[part == s]].sum(axis=0) for s in range(len(wanted))]
            off = np.maximum((found - due) / above, (due - found) / below).max()  # in tolerances
            if off < best:
                best, place[mine], now = off, part, found
            if off <= 1:
                break
        held = now
    return place


def _dealt(row: np.ndarray, wanted: np.ndarray) -> np.ndarray:
    """The part of every group, from a random integer of each: its fraction of the groups to every part.

    Systematic rounding: each part has its fraction of their number rounded up or down, on average exactly.
    """
    start = int(np.bitwise_xor.reduce(row) >> np.uint64(11)) / 2**53  # from 0 to 1
    ends = np.floor(np.cumsum(wanted)[:-1] * len(row) + start).astype(np.int64)
    sizes = np.diff([0, *ends, len(row)])
    part = np.empty(len(row), np.int64)
    part[np.argsort(row, kind="stable")] = np.repeat(np.arange(len(sizes)), sizes)
    return part


def _seats(has: np.ndarray, order: list[int], parts: int) -> dict[int, int] | None:
    """A group of every class for every part, {group: part}; None if there is none (an exact search).

    Groups of one class only serve nothing else, so one for each part settles their class. The rest is searched by kind
    (groups with the same set of classes are alike), the scarcest need first, and no state is tried twice.
    """
    kinds: dict[tuple[int, ...], list[int]] = {}
    for g in order:
        kinds.setdefault(tuple(np.flatnonzero(has[g]).tolist()), []).append(g)
    seats: dict[int, int] = {}
    scarce = set()
    for c in range(has.shape[1]):
        alone = kinds.get((c,), [])
        seats |= dict(zip(alone[:parts], range(parts), strict=True)) if len(alone) >= parts else {}
        scarce |= {c} if len(alone) < parts else set()
    names = sorted((kind for kind in kinds if scarce & set(kind)), key=lambda kind: (-len(kinds[kind]), kind))

    @functools.cache
    def fill(needs: frozenset, left: tuple[int, ...]):
        """The kinds to seat, ((kind, part), ...), so that every (class, part) of `needs` is met."""
        if not needs:
            return ()
        able: Counter[int] = Counter()
        for kind, n in zip(names, left, strict=True):
            able.update(dict.fromkeys(kind, n))
        c, s = min(needs, key=lambda need: (able[need[0]], need))
        for k, kind in enumerate(names):
            if left[k] and c in kind:
                more = fill(needs - {(x, s) for x in kind}, (*left[:k], left[k] - 1, *left[k + 1 :]))
                if more is not None:
                    return ((k, s), *more)
        return None

    chosen = fill(frozenset((c, s) for c in scarce for s in range(parts)), tuple(len(kinds[kind]) for kind in names))
    if chosen is None:
        return None
    unused = {k: iter(kinds[kind]) for k, kind in enumerate(names)}
    return seats | {next(unused[k]): s for k, s in chosen}
