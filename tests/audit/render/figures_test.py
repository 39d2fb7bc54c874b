import itertools
import math
import re
from xml.etree import ElementTree

import pytest

from spax.audit import Plot, Series
from spax.audit.render import svg
from tests.audit.render import reports

SVG = "{http://www.w3.org/2000/svg}"
NAN, INF = math.nan, math.inf
ODD = [
    (),
    (0.0,),
    (NAN,),
    (INF,),
    (-INF,),
    (0.0, 0.0, 0.0),
    (0.0, 1e-300, 1.0),
    (-1.0, 0.0, 1.0),
    (1.0, NAN, 2.0, INF, 3.0),
    (1e-12, 1e12),
    tuple(i / 40 for i in range(41)),
]


def drawn(*series, log="", **names):
    """The element, parsed as XML."""
    labels = {"title": "T", "x_label": "across", "y_label": "up"} | names
    return ElementTree.fromstring(svg(Plot(series=series, log=log, **labels)))


def texts(picture):
    return ["".join(t.itertext()) for t in picture.iter(SVG + "text")]


def lines(picture, colour="--series-0"):
    """Paths that are stroked in a colour: lists of points, by piece."""
    found = []
    for path in picture.iter(SVG + "path"):
        style = path.get("style")
        if f"stroke:var({colour}," in style and "stroke-width:2" in style:
            found += [
                [tuple(map(float, point.split())) for point in piece.split("L")]
                for piece in path.get("d").split("M")[1:]
            ]
    return found


def markers(picture, colour="--series-0"):
    return [
        path.get("d")
        for path in picture.iter(SVG + "path")
        if f"fill:var({colour}," in path.get("style") and "--paper" in path.get("style")
    ]


@pytest.mark.parametrize("style", ["line", "dashed", "points", "steps"])
@pytest.mark.parametrize("log", ["", "x", "y", "xy"])
def test_nothing_that_is_measured_breaks_a_picture(style, log):
    for x, y in itertools.product(ODD, ODD):
        low = tuple(v / 2 for v in y)
        picture = drawn(Series("s", x, y, low, y, style=style), Series("t", y, x), log=log)
        for path in picture.iter(SVG + "path"):
            assert not re.search(r"nan|inf|None", path.get("d"))
            for value in re.findall(r"[ML](-?[\d.]+) (-?[\d.]+)", path.get("d")):
                assert -10 <= float(value[0]) <= 430
                assert -10 <= float(value[1]) <= 400


def test_a_straight_line_is_drawn_straight():
    (points,) = lines(drawn(Series("s", (0.0, 1.0, 3.0), (0.0, 1.0, 3.0))))[:1]
    (x0, y0), (x1, y1), (x3, y3) = points
    assert x3 - x0 == pytest.approx(3 * (x1 - x0), abs=0.5)
    assert y3 - y0 == pytest.approx(3 * (y1 - y0), abs=0.5)
    assert y3 < y0  # up is more


def test_a_power_law_is_straight_on_logarithmic_axes():
    x = (0.01, 0.1, 1.0, 10.0)
    picture = drawn(Series("s", x, tuple(v**2 for v in x)), log="xy")
    points = lines(picture)[0]
    slopes = [(b[1] - a[1]) / (b[0] - a[0]) for a, b in itertools.pairwise(points)]
    assert slopes == pytest.approx([slopes[0]] * 3, rel=0.01)


@pytest.mark.parametrize("gap", [NAN, INF, -INF])
def test_a_line_has_a_gap_where_a_value_is_missing(gap):
    whole = drawn(Series("s", (0.0, 1.0, 2.0, 3.0, 4.0), (1.0, 2.0, 3.0, 2.0, 1.0)))
    broken = drawn(Series("s", (0.0, 1.0, 2.0, 3.0, 4.0), (1.0, 2.0, gap, 2.0, 1.0)))
    legend = 1
    assert [len(p) for p in lines(whole)[:-legend]] == [5]
    assert [len(p) for p in lines(broken)[:-legend]] == [2, 2]


def test_a_point_alone_is_seen():
    for style in ("line", "steps", "points"):
        picture = drawn(
            Series("s", (1.0,), (1.0,), style=style), Series("t", (0.0, 2.0), (1.0, 1.0))
        )
        assert len(markers(picture)) == 2  # and the legend's
    # between two gaps of a line of many points, too
    y = tuple(NAN if i in (19, 21) else 1.0 for i in range(41))
    picture = drawn(Series("s", tuple(map(float, range(41))), y))
    assert len(lines(picture)) == 2 + 1
    ticks = {t.text: float(t.get("x")) for t in picture.iter(SVG + "text")}
    middles = [float(re.match(r"M([\d.]+)", d)[1]) + 3.6 for d in markers(picture)]
    assert min(abs(middle - ticks["20"]) for middle in middles) < 0.2


def test_a_model_without_a_promise_stands_at_infinity():
    points = [("none", INF), ("private", 4.0)]
    picture = drawn(*(Series(n, (e,), (0.9,), style="points") for n, e in points))
    ticks = {t.text: float(t.get("x")) for t in picture.iter(SVG + "text")}
    at = {
        name: float(re.match(r"M([\d.]+)", markers(picture, f"--series-{i}")[0])[1])
        for i, (name, _) in enumerate(points)
    }
    assert "0" in ticks  # a scale from no loss of privacy on
    assert abs(at["none"] - ticks["∞"]) < 6
    assert at["private"] < ticks["4"] + 6 < at["none"]
    assert {"none", "private"} <= set(texts(picture))


def test_where_there_is_nothing_it_says_so():
    assert "no data" in texts(drawn())
    assert "no data" in texts(drawn(Series("s", (), ())))
    assert "no data" in texts(drawn(Series("s", (NAN,), (1.0,))))
    assert "no data" not in texts(drawn(Series("s", (1.0,), (1.0,))))


def test_series_differ_in_more_than_their_colour():
    shapes = set()
    picture = drawn(*(Series(f"s{i}", (0.0, 1.0), (0.5, 0.5)) for i in range(4)))
    for i in range(4):
        shapes.add(re.sub(r"[\d.]+", "", markers(picture, f"--series-{i}")[0]))
    assert len(shapes) == 4
    # lines of many points have markers too, in other places
    x = tuple(i / 99 for i in range(100))
    picture = drawn(*(Series(f"s{i}", x, x) for i in range(2)))
    first, second = (markers(picture, f"--series-{i}")[:-1] for i in range(2))
    assert min(len(first), len(second)) >= 3
    assert not {d.split()[0] for d in first} & {d.split()[0] for d in second}


def test_a_band_lies_between_its_ends():
    picture = drawn(Series("s", (0.0, 1.0), (0.5, 0.5), (0.25, 0.0), (0.75, 1.0)))
    band = next(p for p in picture.iter(SVG + "path") if "fill-opacity" in p.get("style"))
    corners = [tuple(map(float, p.split())) for p in band.get("d")[1:-1].split("L")]
    line = lines(picture)[0]
    assert [x for x, _ in corners] == [line[0][0], line[1][0], line[1][0], line[0][0]]
    up_left, up_right, down_right, down_left = (y for _, y in corners)
    assert up_right < up_left < line[0][1] < down_left < down_right


def test_legends_and_names_keep_apart():
    names = ("short", "a much longer name", "模型模型", "x", "another of them", "the last")
    legend = drawn(*(Series(n, (0.0, 1.0), (0.5, 0.5)) for n in names))
    beside = drawn(*(Series(n, (INF,), (0.9,), style="points") for n in names))
    for picture in (legend, beside):
        height = float(picture.get("viewBox").split()[3])
        boxes = []
        for t in picture.iter(SVG + "text"):
            if t.text in names:
                width = sum(13 if ord(c) > 0x2E80 else 6 for c in t.text)
                x, y = float(t.get("x")), float(t.get("y"))
                left = x - width if t.get("text-anchor") == "end" else x
                assert left >= 0
                assert left + width <= 420
                assert y <= height
                boxes.append((left, left + width, y))
        assert len(boxes) == len(names)
        for (l1, r1, y1), (l2, r2, y2) in itertools.combinations(boxes, 2):
            assert abs(y1 - y2) >= 13 or r1 <= l2 or r2 <= l1


def test_names_are_cut_and_escaped():
    picture = drawn(*(Series(n, (0.0, 1.0), (0.5, 0.5)) for n in reports.HOSTILE), title="<b>&")
    assert picture.find(SVG + "title").text == "<b>&"
    assert all(len(t) < 60 for t in texts(picture))
    assert reports.HOSTILE[0] in texts(picture)
    assert "<script>" in picture.find(SVG + "desc").text


def test_ids_begin_with_the_prefix_and_are_plain():
    plot = Plot("T", "x", "y", ())
    ids = re.findall(r'id="([^"]*)"', svg(plot, prefix='a" b<é'))
    assert ids == ["a--b---title", "a--b---desc"]


def test_the_same_plot_gives_the_same_bytes():
    for plot in reports.section().plots:
        assert svg(plot) == svg(plot)
