"""Lays out the nodes of a graph in columns from left to right, with wires between them."""

import collections
import itertools
import math
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np

GAP = 9.0  # the vertical distance between items
PITCH = 14.0  # the vertical distance between wires that enter a node from the left
TRACK = 10.0  # the horizontal distance between vertical wires
BEFORE, AFTER = (
    9.0,
    17.0,
)  # the distances from a column to vertical wires, and from them to the next
STUB = 15.0  # the shortest wire into a node from above or below
JOG = 18.0  # a smaller vertical offset of a wire looks crooked
NEAR = 7.0  # closer wires would look like one

Point = tuple[float, float]


class Shape(NamedTuple):
    """The size of a node; all distances are from its centre.

    Attributes:
      kind: where wires enter: ``"side"``, from the left; ``"round"``, from the left, above and
        below; or one of the ends of wires, ``"left"``, ``"right"``, ``"bottom"``, ``"top"``.
      width: the distance to the left and right edges, where wires end and begin.
      height: the distance to the upper and lower edges.
      left: the extent to the left, including text.
      right: the extent to the right, including text.
    """

    kind: str
    width: float
    height: float
    left: float
    right: float


class Link(NamedTuple):
    """An edge into a node.

    Attributes:
      source: the index of the source node.
      straight: the weight of a straight wire; the strongest wires stay in one row.
    """

    source: int
    straight: float = 1.0


class Wire(NamedTuple):
    """The line of an edge.

    Attributes:
      target: the index of the target node.
      number: the index among the target's inputs.
      points: its corners; if it branches off a wire of the same source, from there on.
    """

    target: int
    number: int
    points: list[Point]


class Layout(NamedTuple):
    """The positions of nodes and wires.

    Attributes:
      centres: the centre of each node.
      wires: one wire for each edge.
      dots: the points at which wires of one source branch.
      inside: the left, top, right and bottom of the area between the ends.
    """

    centres: list[Point]
    wires: list[Wire]
    dots: list[Point]
    inside: tuple[float, float, float, float]


def lay_out(
    shapes: Sequence[Shape],
    links: Sequence[Sequence[Link]],
    ordered: Iterable[int] = (),
    orders: Iterable[Sequence[int]] = ((),),
) -> Layout:
    """Places nodes so that few wires cross and many are straight.

    Linear programmes determine the columns and the rows, with the shortest possible wires
    (Gansner, Koutsofios, North & Vo, "A Technique for Drawing Directed Graphs", 1993).  To order
    the nodes within columns, each node in turn moves to its best position.

    Args:
      shapes: the size of each node.
      links: the edges into each node, from previous nodes.
      ordered: round nodes whose first input must enter from the left.
      orders: candidate orders of the ``"left"`` nodes from top to bottom; the one with the fewest
        crossings is used.  The n-th ``"right"`` node has the position of the n-th left one.
    """
    found = [_Order(shapes, links, set(ordered), order) for order in orders]
    for order in found[1:] and found:
        order.improve(1)
    best = min(found, key=lambda order: round(order.total(), 6))
    best.improve(STARTS, thorough=True)
    return _Placement(best).layout()


# ---- linear programmes ----


def shortest(
    size: int,
    pulls: Sequence[tuple[int, int, float, float]],
    gaps: Sequence[tuple[int, int, float]],
) -> np.ndarray:
    """Minimises the sum of w |x_a - x_b + d| over x, with x_b - x_a at least a gap.

    Args:
      size: the number of variables x.
      pulls: tuples of a, b, w and d.
      gaps: tuples of a, b and the gap.

    >>> shortest(3, [(0, 1, 1.0, 0.0), (1, 2, 1.0, 0.0)], [(0, 2, 4.0), (0, 1, 1.0)]).tolist()
    [0.0, 1.0, 4.0]
    """
    from scipy.optimize import linprog
    from scipy.sparse import coo_array

    count = len(pulls)
    # Irregular weights make the solution unique, so that drawings do not depend on the solver.
    uneven = np.modf(np.arange(1, size + count + 1) * 0.6180339887)[0]
    cost = np.zeros(size + count)
    cost[:size] = 1e-3 * (1 + uneven[:size])
    cost[size:] = [w * (1 + 1e-2 * u) for (_, _, w, _), u in zip(pulls, uneven[size:], strict=True)]
    rows: list[tuple[list[int], list[float], float]] = []
    for n, (a, b, _, d) in enumerate(pulls):
        rows.append(([a, b, size + n], [1.0, -1.0, -1.0], -d))
        rows.append(([a, b, size + n], [-1.0, 1.0, -1.0], d))
    rows += [([a, b], [1.0, -1.0], -gap) for a, b, gap in gaps]
    index = [(r, c) for r, (columns, _, _) in enumerate(rows) for c in columns]
    data = [v for _, values, _ in rows for v in values]
    matrix = coo_array((data, tuple(np.array(index).T)), shape=(len(rows), size + count))
    solved = linprog(cost, matrix.tocsr(), [bound for _, _, bound in rows], bounds=(0, None))
    if solved.status != 0:
        raise ValueError(f"no layout fits: {solved.message}")
    return np.round(solved.x[:size], 2) + 0.0


def columns_of(shapes: Sequence[Shape], links: Sequence[Sequence[Link]]) -> list[int]:
    """The column of each node, after its inputs, so that wires (one per source) are short."""
    count = len(shapes)
    begin, last = 2 * count, 2 * count + 1  # variables: columns of nodes, then ends of their wires
    pulls, gaps = [], []
    for n, shape in enumerate(shapes):
        pulls.append((n, count + n, 1.0, 0.0))
        gaps.append((n, count + n, 0.0))
        if shape.kind in ("left", "bottom"):
            pulls.append((begin, n, 1e3, 0.0))
        else:
            gaps.append((begin, n, 1.0))
        if shape.kind in ("right", "top"):
            pulls.append((n, last, 1e3, 0.0))
        else:
            gaps.append((n, last, 1.0))
        if shape.kind == "side":
            pulls.append((begin, n, 0.1, 0.0))
        for link in links[n]:
            gaps.append((link.source, n, 1.0))
            gaps.append((n, count + link.source, 0.0))
    found = shortest(2 * count + 2, pulls, gaps)
    return [round(column - found[begin]) for column in found[:count]]


# ---- the order within columns ----


class Item(NamedTuple):
    """An item of a column: a node, or the lane of a node's wire that passes through."""

    kind: str
    node: int


OUTSIDE = 1e3
STARTS = 4  # the number of initial orders
CLASHES = 40  # the maximum number of separations between wires
STRONG = 10.0  # wires with a larger weight stay in one row


class _Order:
    """The items of each column from top to bottom, and the sides where wires enter round nodes."""

    def __init__(
        self,
        shapes: Sequence[Shape],
        links: Sequence[Sequence[Link]],
        ordered: set[int],
        ends: Sequence[int],
    ):
        self.shapes, self.links = shapes, links
        self.column = columns_of(shapes, links)
        self.targets: dict[int, list[tuple[int, int]]] = collections.defaultdict(list)
        for n, edges in enumerate(links):
            for i, link in enumerate(edges):
                self.targets[link.source].append((n, i))
        self.last = max(self.column)
        self.columns: list[list[Item]] = [[] for _ in range(self.last + 1)]
        for n, shape in enumerate(shapes):
            if shape.kind not in ("bottom", "top"):
                self.columns[self.column[n]].append(Item("node", n))
            reach = max((self.column[t] for t, _ in self.targets[n]), default=0)
            for k in range(self.column[n] + 1, reach):
                self.columns[k].append(Item("lane", n))
        self.strong = {
            Item(kind, n)
            for n, edges in enumerate(links)
            for kind in ("node", "lane")
            if any(link.straight > STRONG for t, i in self.targets[n] for link in [links[t][i]])
        }
        self.choices = [self._choices(n, n in ordered) for n in range(len(shapes))]
        self.ports = [choices[0] for choices in self.choices]
        if ends:
            lefts = [n for n, shape in enumerate(shapes) if shape.kind == "left"]
            rights = [n for n, shape in enumerate(shapes) if shape.kind == "right"]
            matching = dict(zip(lefts, rights, strict=True))
            self.columns[0] = [Item("node", n) for n in ends]
            self.columns[-1] = [Item("node", matching[n]) for n in ends]
        self._known: dict[Any, Any] = {}

    def improve(self, starts: int, thorough: bool = False) -> None:
        """Improves several initial orders, and uses the best result."""
        found = []
        for start in range(starts):
            self.ports = [choices[0] for choices in self.choices]
            self._begin(start)
            self._improve(thorough)
            columns = [list(column) for column in self.columns]
            found.append((round(self.total(), 6), start, columns, self.ports))
        _, _, self.columns, self.ports = min(found, key=lambda one: one[:2])

    def _choices(self, n: int, ordered: bool) -> list[str]:
        """The sides from which wires can enter a node, one letter for each input."""
        count = len(self.links[n])
        if self.shapes[n].kind != "round" or count > 3:
            return ["W" * count]
        found: list[str] = ["".join(s) for s in itertools.permutations("WNS", count)]
        strong = [i for i, link in enumerate(self.links[n]) if link.straight > STRONG]
        if ordered:
            found = [sides for sides in found if sides[0] == "W"]
        elif strong:
            found = [sides for sides in found if sides[strong[0]] == "W"]
        return found

    def _begin(self, start: int) -> None:
        """Sorts items by the mean row of their inputs, or scatters them if ``start`` is not 0."""
        for k in range(1, self.last):
            rows = {item.node: i for i, item in enumerate(self.columns[k - 1])}

            def mean(item: Item, rows: dict[int, int] = rows) -> float:
                if item.kind == "lane":
                    return rows.get(item.node, OUTSIDE)
                found = [rows.get(link.source, OUTSIDE) for link in self.links[item.node]]
                return sum(found) / len(found) if found else 0.0

            def scattered(item: Item) -> float:
                return (item.node * (7 + 12 * start) + start * start) % 31

            self.columns[k].sort(key=scattered if start else mean)

    def _improve(self, thorough: bool) -> None:
        before = math.inf
        while (now := self.total()) < before - 1e-9:
            before = now
            for k in range(1, self.last):
                for item in list(self.columns[k]):
                    self._move(k, item)
            for n in range(len(self.shapes)):
                if thorough and 0 < self.column[n] < self.last:
                    self._move_with_lanes(n)

    def _move(self, k: int, item: Item) -> None:
        """Moves an item, and the wires into it, to the position with the lowest cost."""
        column, n = self.columns[k], item.node
        at = column.index(item)
        choices = self.choices[n] if item.kind == "node" else [self.ports[n]]
        saved = self.ports[n]
        best = (self.cost(k), at, saved)
        column.pop(at)
        for position in range(len(column) + 1):
            column.insert(position, item)
            for choice in choices:
                self.ports[n] = choice
                cost = self.cost(k)
                if cost < best[0] - 1e-9:
                    best = (cost, position, choice)
            self.ports[n] = saved
            column.pop(position)
        column.insert(best[1], item)
        self.ports[n] = best[2]

    def _move_with_lanes(self, n: int) -> None:
        """Moves a node, with its wire and its targets, to the position with the lowest cost."""
        k = self.column[n]
        follow = [(i, Item("lane", n)) for i, c in enumerate(self.columns) if Item("lane", n) in c]
        follow += [
            (self.column[t], Item("node", t))
            for t in sorted({t for t, _ in self.targets[n]})
            if self.column[t] < self.last and self.shapes[t].kind in ("side", "round")
        ]
        best = self.total()
        for position in range(len(self.columns[k])):
            saved = [list(column) for column in self.columns], list(self.ports)
            self.columns[k].remove(Item("node", n))
            self.columns[k].insert(position, Item("node", n))
            for column, item in follow:
                self._move(column, item)
            self._move(k, Item("node", n))
            now = self.total()
            if now < best - 1e-9:
                best = now
            else:
                self.columns, self.ports = saved

    def total(self) -> float:
        """The cost of the whole order."""
        return sum(self.channel(k) for k in range(self.last)) + sum(
            map(self.inside, range(1, self.last))
        )

    def cost(self, k: int) -> float:
        """The cost of the order of one column."""
        key = self._key(k - 1), self._key(k), self._key(k + 1)
        if (k, key) not in self._known:
            self._known[k, key] = self.channel(k - 1) + self.channel(k) + self.inside(k)
        return self._known[k, key]

    def inside(self, k: int) -> float:
        """A small cost for items above the strongest wires, and for wires with an extra bend."""
        above = [i for i, item in enumerate(self.columns[k]) if item in self.strong]
        corners = [kind for kind, _ in self.slots(k)]
        return 0.15 * min(above, default=0) + 0.03 * corners.count("N") + 0.04 * corners.count("S")

    def slots(self, k: int) -> list[tuple[str, int]]:
        """Everything in a column that occupies a separate row, from top to bottom.

        These are the items and the corners, ``"N"`` and ``"S"``, at which a wire turns down or up
        into a round node.  There is no corner next to a lane of the same wire; the wire then
        branches off the lane.
        """
        key = ("slots", k, self._key(k))
        if key in self._known:
            return self._known[key]
        found: list[tuple[str, int]] = []
        self._known[key] = found
        column = self.columns[k]
        for i, item in enumerate(column):
            sides = self.ports[item.node] if item.kind == "node" else ""
            if "N" in sides and not self._taps(column, i - 1, item.node, "N"):
                found.append(("N", item.node))
            found.append((item.kind, item.node))
            if "S" in sides and not self._taps(column, i + 1, item.node, "S"):
                found.append(("S", item.node))
        return found

    def _taps(self, column: list[Item], neighbour: int, node: int, side: str) -> bool:
        if not 0 <= neighbour < len(column) or column[neighbour].kind != "lane":
            return False
        return column[neighbour].node == self.links[node][self.ports[node].index(side)].source

    def arrivals(self, k: int) -> list[tuple[int, tuple[str, int], float]]:
        """The wires into a column: source, slot, and weight of being straight."""
        found = []
        slots = set(self.slots(k))
        for kind, n in self.slots(k):
            if kind == "lane":
                strong = max(self.links[t][i].straight for t, i in self.targets[n])
                found.append((n, (kind, n), 2.0 * strong))
            elif kind == "node":
                for link, side in zip(self.links[n], self.ports[n], strict=True):
                    if side == "W" or (side, n) in slots:
                        slot = (kind, n) if side == "W" else (side, n)
                        found.append((link.source, slot, link.straight))
        if k == self.last:
            for n, shape in enumerate(self.shapes):
                if shape.kind == "top":
                    found.append((self.links[n][0].source, ("top", n), 0.0))
        return found

    def channel(self, k: int) -> float:
        """The crossings between a column and the next, and a small cost for wires with bends."""
        key = (k, self._key(k), self._key(k + 1))
        if key not in self._known:
            self._known[key] = self._channel(k)
        return self._known[key]

    def _key(self, k: int) -> Any:
        column = self.columns[k]
        return tuple(column), tuple(self.ports[i.node] for i in column if i.kind == "node")

    def _channel(self, k: int) -> float:
        left = {n: i for i, (kind, n) in enumerate(self.slots(k)) if kind in ("node", "lane")}
        slots = self.slots(k + 1)
        right = {slot: i for i, slot in enumerate(slots)}
        more = len(self.slots(k)) - len(slots)
        ends = [
            (n, left.get(n, OUTSIDE), right.get(slot, -OUTSIDE), straight)
            for n, slot, straight in self.arrivals(k + 1)
        ]
        cost = 0.0
        for i, (n, a, b, straight) in enumerate(ends):
            for m, c, d, _ in ends[:i]:
                if n != m and (a - c) * (b - d) < 0:
                    cost += 1.0
            if abs(a) < OUTSIDE and abs(b) < OUTSIDE:
                # Rows are counted from the top or from the bottom, whichever is closer.
                cost += 0.02 * min(straight, 2.0) * min(abs(a - b), abs(a - b - more))
        return cost


# ---- placement ----


class _Placement:
    """Computes the rows, columns and wires of an order."""

    def __init__(self, order: _Order):
        self.order, self.shapes, self.links = order, order.shapes, order.links
        self.slots = [(k, *slot) for k in range(order.last + 1) for slot in order.slots(k)]
        self.index = {slot: i for i, slot in enumerate(self.slots)}
        self.port: dict[tuple[int, int], float] = collections.defaultdict(float)
        self.separations: list[tuple[int, int, float]] = []
        self.y = self._rows()
        self._sort_ports()
        self.y = self._rows()
        while (clash := self._tracks()) and len(self.separations) < CLASHES:
            if not self._separate(clash):
                break
        self._straighten()
        self._tracks(strict=False)

    # ---- rows ----

    def _straighten(self) -> None:
        """Straightens wires that are nearly level, unless that makes others crooked."""
        tried: set[tuple[int, int]] = set()
        jogs = self._jogs()
        while left := [jog for jog in jogs if jog[:2] not in tried]:
            a, b, distance = left[0]
            tried.add((a, b))
            saved = self.separations, self.y
            if self._separate((a, b, distance), (b, a, -distance)):
                after = self._jogs()
                if len(after) < len(jogs) and self._tracks() is None:
                    jogs = after
                else:
                    self.separations, self.y = saved

    def _separate(self, *gaps: tuple[int, int, float]) -> bool:
        """Recomputes the rows with additional gaps; returns whether that was possible."""
        saved, self.separations = self.separations, [*self.separations, *gaps]
        try:
            self.y = self._rows()
        except ValueError:
            self.separations = saved
            return False
        return True

    def _jogs(self) -> list[tuple[int, int, float]]:
        """Wires that are nearly level: their start and end, and the distance that levels them."""
        found = []
        for k in range(self.order.last):
            for source, slot, _ in self.order.arrivals(k + 1):
                a, b = self._from(k, source), self.index.get((k + 1, *slot))
                if a is not None and b is not None:
                    offset = self._offset(source, slot)
                    if 0.01 < abs(self.y[a] - self.y[b] - offset) < JOG:
                        found.append((a, b, -offset))
        return found

    def _room(self, slot: tuple[int, str, int]) -> float:
        _, kind, n = slot
        return self.shapes[n].height if kind == "node" else 2.0

    def _rows(self) -> np.ndarray:
        pulls, gaps = [], list(self.separations)
        for k in range(self.order.last + 1):
            column = [slot for slot in self.slots if slot[0] == k]
            for a, b in itertools.pairwise(column):
                gap = self._room(a) + self._room(b) + GAP
                if (a[1], b[1]) in (("N", "node"), ("node", "S")) and a[2] == b[2]:
                    gap = self.shapes[a[2]].height + STUB
                elif self._tapped(a, b) or self._tapped(b, a):
                    gap = self._room(a) + self._room(b) + STUB
                gaps.append((self.index[a], self.index[b], gap))
            if k:
                for source, slot, straight in self.order.arrivals(k):
                    a = self._from(k - 1, source)
                    b = self.index.get((k, *slot))
                    if a is not None and b is not None:
                        offset = self._offset(source, slot)
                        share = 1 if straight > STRONG else len(self.order.targets[source])
                        pulls.append((a, b, straight / share, -offset))
        return shortest(len(self.slots), pulls, gaps)

    def _tapped(self, a: tuple[int, str, int], b: tuple[int, str, int]) -> bool:
        """Whether the wire of node b branches off the neighbouring lane a."""
        if a[1] != "lane" or b[1] != "node":
            return False
        return any(
            link.source == a[2] and side != "W" and (b[0], side, b[2]) not in self.index
            for link, side in zip(self.links[b[2]], self.order.ports[b[2]], strict=True)
        )

    def _from(self, k: int, source: int) -> int | None:
        for kind in ("node", "lane"):
            if (k, kind, source) in self.index:
                return self.index[k, kind, source]
        return None

    def _offset(self, source: int, slot: tuple[str, int]) -> float:
        if slot[0] != "node":
            return 0.0
        return next(
            self.port[slot[1], i]
            for i, link in enumerate(self.links[slot[1]])
            if link.source == source and self.order.ports[slot[1]][i] == "W"
        )

    def _sort_ports(self) -> None:
        """Sorts wires that enter a node from the left by the height of their sources."""
        for n, edges in enumerate(self.links):
            side = [i for i in range(len(edges)) if self.order.ports[n][i] == "W"]
            if self.shapes[n].kind not in ("side", "round") or len(side) < 2:
                continue
            k = self.order.column[n]

            def height(i: int, n: int = n, k: int = k) -> float:
                slot = self._from(k - 1, self.links[n][i].source)
                return math.inf if slot is None else self.y[slot]

            for position, i in enumerate(sorted(side, key=height)):
                self.port[n, i] = PITCH * (position - (len(side) - 1) / 2)

    # ---- tracks ----

    def _ends(self, k: int) -> dict[int, tuple[float, list[float]]]:
        """The heights of each wire between column k and the next, on the left and right."""
        found: dict[int, tuple[float, list[float]]] = {}
        for source, slot, _ in self.order.arrivals(k + 1):
            a, b = self._from(k, source), self.index.get((k + 1, *slot))
            left = math.inf if a is None else float(self.y[a])
            right = -math.inf if b is None else float(self.y[b]) + self._offset(source, slot)
            found.setdefault(source, (left, []))[1].append(right)
        # One source may enter a node at two ports.
        for n in (item.node for item in self.order.columns[k + 1] if item.kind == "node"):
            for i, link in enumerate(self.links[n]):
                if self.order.ports[n][i] == "W":
                    right = self.y[self.index[k + 1, "node", n]] + self.port[n, i]
                    if right not in found[link.source][1]:
                        found[link.source][1].append(float(right))
        return found

    def _tracks(self, strict: bool = True) -> tuple[int, int, float] | None:
        """Chooses the tracks of vertical wires; returns two rows to separate if it cannot."""
        self.track: list[dict[int, int]] = []
        for k in range(self.order.last):
            ends = self._ends(k)
            bent = [n for n, (a, bs) in ends.items() if any(abs(a - b) > 0.01 for b in bs)]
            order = self._sequence(ends, bent)
            clash = self._clash(k, ends, order)
            if clash is not None and strict:
                return clash
            tracks: dict[int, int] = {}
            for n in order:
                taken = [tracks[m] + 1 for m in tracks if self._overlap(ends, m, n)]
                tracks[n] = max(taken, default=0)
            self.track.append(tracks)
        return None

    def _reach(self, ends: Any, n: int) -> tuple[float, float]:
        a, bs = ends[n]
        return min(a, *bs), max(a, *bs)

    def _must_precede(self, ends: Any, a: int, b: int) -> bool:
        """Whether the track of a must be left of that of b: a begins at a height where b ends."""
        return any(abs(ends[a][0] - right) < NEAR for right in ends[b][1])

    def _overlap(self, ends: Any, a: int, b: int) -> bool:
        """Whether the vertical parts of two wires need different tracks."""
        (low, high), (bottom, top) = self._reach(ends, a), self._reach(ends, b)
        overlap = low < top + NEAR and bottom < high + NEAR
        return overlap or self._must_precede(ends, a, b)

    def _clash(self, k: int, ends: Any, order: Sequence[int]) -> tuple[int, int, float] | None:
        """Rows to separate, because a wire ends at the height of a wire that it precedes."""
        for a, b in itertools.combinations(order, 2):
            if not self._must_precede(ends, b, a):
                continue
            start = self._from(k, b)
            for source, slot, _ in self.order.arrivals(k + 1):
                end, offset = self.index.get((k + 1, *slot)), self._offset(source, slot)
                if source != a or start is None or end is None:
                    continue
                if abs(self.y[end] + offset - self.y[start]) < NEAR:
                    above = ends[a][0] < ends[b][0]
                    return (end, start, TRACK + offset) if above else (start, end, TRACK - offset)
        return None

    def _sequence(self, ends: Any, bent: list[int]) -> list[int]:
        """The order of wires from left to right with few crossings."""

        def price(a: int, b: int) -> float:
            """The cost of a being to the left of b."""
            (low, high), (bottom, top) = self._reach(ends, a), self._reach(ends, b)
            crossings = sum(bottom < right < top for right in ends[a][1])
            crossings += low < ends[b][0] < high
            return crossings + 100.0 * self._must_precede(ends, b, a)

        prices = {(a, b): price(a, b) for a, b in itertools.permutations(bent, 2)}

        def total(order: Sequence[int]) -> float:
            return sum(prices[pair] for pair in itertools.combinations(order, 2))

        if len(bent) <= 6:
            return list(min(itertools.permutations(bent), key=total, default=()))
        order: list[int] = []
        for n in bent:
            candidates = [[*order[:i], n, *order[i:]] for i in range(len(order) + 1)]
            order = min(candidates, key=total)
        return order

    # ---- wires ----

    def layout(self) -> Layout:
        order = self.order
        x, starts = 0.0, []  # the position of the first track after each column
        column_x = [0.0] * (order.last + 1)
        for k in range(order.last + 1):
            nodes = [self.shapes[i.node] for i in order.columns[k] if i.kind == "node"]
            x += max((shape.left for shape in nodes), default=0.0)
            column_x[k] = x
            x += max((shape.right for shape in nodes), default=0.0)
            starts.append(x + BEFORE)
            if k < order.last:
                x += (
                    BEFORE
                    + TRACK * max((t + 1 for t in self.track[k].values()), default=0)
                    - (TRACK if self.track[k] else 0.0)
                    + AFTER
                )
        heights = [
            (self.y[i] - self._room(slot), self.y[i] + self._room(slot))
            for i, slot in enumerate(self.slots)
        ]
        top, bottom = min(a for a, _ in heights) - GAP, max(b for _, b in heights) + GAP
        centres: list[Point] = []
        for n, shape in enumerate(self.shapes):
            k = order.column[n]
            if shape.kind == "bottom":
                track = self.track[0].get(n, 0)
                centres.append((starts[0] + TRACK * track, bottom))
            elif shape.kind == "top":
                track = self.track[-1].get(self.links[n][0].source, 0)
                centres.append((starts[order.last - 1] + TRACK * track, top))
            else:
                centres.append((column_x[k], float(self.y[self.index[k, "node", n]])))
        drawn: dict[int, list[tuple[Point, Point]]] = collections.defaultdict(list)
        wires, dots = [], []
        edges = [(n, i) for n in range(len(self.shapes)) for i in range(len(self.links[n]))]
        # The wires with the largest weight come first, and the others branch off them.
        edges.sort(key=lambda edge: -self.links[edge[0]][edge[1]].straight)
        for n, i in edges:
            source = self.links[n][i].source
            points = self._points(n, i, starts, centres)
            rest = _after(points, drawn[source])
            if rest[0] != points[0]:
                dots.append(rest[0])
            drawn[source] += itertools.pairwise(points)
            wires.append(Wire(n, i, rest))
        left = starts[0] - BEFORE
        right = column_x[-1] - max(
            (self.shapes[i.node].left for i in order.columns[-1]), default=0.0
        )
        return Layout(centres, wires, sorted(set(dots)), (left, top, right, bottom))

    def _points(self, n: int, i: int, starts: list[float], centres: list[Point]) -> list[Point]:
        """The corners of a wire from its source to an input of node n."""
        order, source = self.order, self.links[n][i].source
        begin, end = order.column[source], order.column[n]
        x, y = centres[source]
        points = [(x, y)]
        if self.shapes[source].kind != "bottom":
            points = [(x + self.shapes[source].width, y)]
        side = order.ports[n][i]
        shape = self.shapes[n]
        for k in range(begin, end):
            if k + 1 < end:
                to = self.y[self.index[k + 1, "lane", source]]
            elif shape.kind == "top":
                to = centres[n][1]
            elif side == "W":
                to = centres[n][1] + self.port[n, i]
            else:
                slot = self.index.get((end, side, n), self.index.get((end, "lane", source)))
                assert slot is not None
                to = self.y[slot]
            if source in self.track[k] and abs(to - y) > 0.01:
                at = starts[k] + TRACK * self.track[k][source]
                points += [(at, y), (at, float(to))]
            y = float(to)
        if shape.kind == "top":
            return _without_repeats(points)
        if side == "W":
            points.append((centres[n][0] - shape.width, y))
        else:
            edge = shape.height * (-1 if side == "N" else 1)
            points += [(centres[n][0], y), (centres[n][0], centres[n][1] + edge)]
        return _without_repeats(points)


def _without_repeats(points: list[Point]) -> list[Point]:
    """Reduces a line to its corners."""
    found: list[Point] = []
    for point in points:
        if found and math.dist(found[-1], point) < 0.01:
            continue
        if len(found) > 1 and (found[-2][0] == found[-1][0] == point[0] or (
            found[-2][1] == found[-1][1] == point[1]
        )):  # fmt: skip
            found.pop()
        found.append(point)
    return found


def _after(points: list[Point], drawn: list[tuple[Point, Point]]) -> list[Point]:
    """The rest of a line, from the point at which it leaves the drawn segments.

    >>> _after([(0, 0), (5, 0), (5, 9)], [((0, 0), (8, 0))])
    [(5, 0), (5, 9)]
    """
    if not drawn:
        return points
    for i, (a, b) in enumerate(itertools.pairwise(points)):
        at = a
        while at != b:
            further = [_shared(at, b, *segment) for segment in drawn]
            reached = max(further, key=lambda p: abs(p[0] - a[0]) + abs(p[1] - a[1]), default=at)
            if reached == at:
                return [at, *points[i + 1 :]]
            at = reached
    return points[-1:]


def _shared(at: Point, to: Point, a: Point, b: Point) -> Point:
    """The farthest point from ``at`` towards ``to`` that a segment covers."""
    for axis in (0, 1):
        across = 1 - axis
        if at[across] == to[across] == a[across] == b[across]:
            low, high = sorted((a[axis], b[axis]))
            if low <= at[axis] <= high:
                reach = min(high, to[axis]) if to[axis] > at[axis] else max(low, to[axis])
                point = [at[0], at[1]]
                point[axis] = reach
                return (point[0], point[1])
    return at
