"""Groups shared out to the parts of a split: every class in every part, and the shares near to those wanted."""

from __future__ import annotations

import functools
from collections import Counter

import numpy as np

UNIT = 1 << 24  # one whole class in the integers `_improve` counts with: no rounding, so every machine agrees
SWAPS_UP_TO = 1000  # groups; above that single groups are so small that moving them one by one is exact enough


def assign(counts: np.ndarray, fractions, order: list[int]) -> np.ndarray | None:
    """The part (0, 1, ...) of every group, one per fraction, from its images per class (G, C).

    None if there is no way to have every class in every part.

    Chance first, balance second: the groups are drawn class by class in the seeded order, so that large and small
    ones are as likely to be tested; then the moves and swaps are made that bring the shares to the fractions.
    """
    seats = _seats(counts > 0, order, len(fractions))
    if seats is None:
        return None
    place = np.empty(len(counts), np.int64)
    main = (counts / counts.sum(axis=0)).argmax(axis=1)  # the class of which a group holds the largest share
    ordered = np.array(order)
    for c in range(counts.shape[1]):
        mine = ordered[main[ordered] == c]
        size = counts[mine].sum(axis=1)
        middle = (size.cumsum() - size / 2) / max(size.sum(), 1)
        place[mine] = np.searchsorted(np.cumsum(fractions)[:-1], middle)
    place[list(seats)] = list(seats.values())
    _improve(counts, fractions, place)
    return place


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
        if has[:, c].sum() < parts:
            return None
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


def _improve(counts: np.ndarray, fractions, place: np.ndarray) -> None:
    """Moves and swaps groups, best first, while the squared error of the shares falls; `place` (G,) is changed.

    Error of a part: its share minus the fraction, of the images of every class, of all images and, at half
    the weight, of the groups of every class (two patients say less than five, however many images they have).
    A group that is the last of a class in its part stays. Sums of integers, so that no machine rounds differently.
    """
    has = counts > 0
    whole = np.column_stack([counts, counts.sum(axis=1), has])
    unit = np.repeat([UNIT, UNIT // 2], [len(counts.T) + 1, len(counts.T)])
    size = whole * unit // whole.sum(axis=0)  # (G, 2 C + 1) shares in units
    target = np.rint(np.outer(fractions, size.sum(axis=0))).astype(np.int64)  # (P, 2 C + 1)
    square = (size * size).sum(axis=1)
    rows = np.arange(len(place))
    pairs = len(place) <= SWAPS_UP_TO
    distance = square[:, None] + square - 2 * (size @ size.T) if pairs else None
    while True:
        error = np.stack([size[place == s].sum(axis=0) for s in range(len(fractions))]) - target
        held = np.stack([has[place == s].sum(axis=0) for s in range(len(fractions))])  # groups of a class in each part
        last = has & (held[place] == 1)
        pull = size @ error.T  # (G, P)
        pull -= pull[rows, place][:, None]
        change = np.where(last.any(axis=1)[:, None], 0, square[:, None] + pull)  # half the change of the squared error
        change[rows, place] = 0
        g, s = np.unravel_index(change.argmin(), change.shape)
        if change[g, s] < 0:
            place[g] = s
            continue
        if not pairs:
            return
        across = pull[:, place]  # (G, G): group g goes where group h is
        change = distance + across + across.T
        bare = (last.astype(np.int64) @ ~has.T) > 0  # h lacks a class of which g is the last
        change[bare | bare.T] = 0
        g, h = np.unravel_index(change.argmin(), change.shape)
        if change[g, h] >= 0:
            return
        place[g], place[h] = place[h], place[g]
