import dataclasses
import re
from html.parser import HTMLParser

import pytest

from spax.audit import AuditReport, Measurement, Section
from spax.audit.render import html
from spax.audit.render.style import STYLE
from tests.audit.render import reports

VOID = {"meta", "br", "img", "input", "link", "hr"}


class Page(HTMLParser):
    """A page's elements with their attributes, and its text; fails where tags do not match."""

    def __init__(self, page):
        super().__init__(convert_charrefs=True)
        self.open, self.elements, self.texts = [], [], []
        self.feed(page)
        self.close()
        assert not self.open

    def handle_starttag(self, tag, attrs):
        assert len({name for name, _ in attrs}) == len(attrs), "an attribute given twice"
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if "style" not in self.open:
            self.texts.append(data)

    def handle_comment(self, data):
        raise AssertionError(f"a comment: {data}")

    @property
    def text(self):
        return " ".join("".join(self.texts).split())

    def all(self, tag):
        return [attrs for name, attrs in self.elements if name == tag]


@pytest.fixture(scope="module", params=[reports.report, reports.hostile], ids=["usual", "hostile"])
def page(request):
    return Page(html(request.param()))


def test_it_needs_nothing_from_elsewhere(page):
    for tag, attrs in page.elements:
        assert tag not in ("script", "link", "iframe", "object", "embed", "base", "form")
        for name, value in attrs.items():
            assert not name.startswith("on")
            if name in ("src", "href", "xlink:href", "data", "action"):
                assert re.match(r"data:image/png;base64,|#[a-z0-9]+$", value)
            assert name != "style" or "url" not in value
    assert "url(" not in STYLE
    assert "@import" not in STYLE
    policy = next(a["content"] for a in page.all("meta") if "http-equiv" in a)
    assert policy.startswith("default-src 'none'")


def test_names_put_nothing_into_the_page_but_text():
    tame = Page(html(reports.report(tuple(f"model {i}" for i in range(len(reports.HOSTILE))))))
    page = Page(html(reports.hostile()))
    assert {tag for tag, _ in page.elements} == {tag for tag, _ in tame.elements}
    attributes = {(tag, name) for tag, attrs in tame.elements for name in attrs}
    assert {(tag, name) for tag, attrs in page.elements for name in attrs} == attributes
    for name in reports.HOSTILE[:3]:
        assert name in page.text


def test_what_reorders_or_controls_is_replaced():
    page = html(reports.hostile())
    assert not [c for c in page if not c.isprintable() and c not in "\n\t\xa0"]
    page.encode("utf-8")  # a lone surrogate could not be


def test_references_inside_the_page_lead_somewhere(page):
    ids = [attrs["id"] for _, attrs in page.elements if "id" in attrs]
    assert len(ids) == len(set(ids))
    for _, attrs in page.elements:
        for wanted in attrs.get("aria-labelledby", "").split():
            assert wanted in ids
        if "href" in attrs:
            assert attrs["href"][1:] in ids


def test_it_can_be_heard(page):
    assert page.all("html")[0]["lang"] == "en"
    assert all("scope" in attrs for attrs in page.all("th"))
    assert all("alt" in attrs for attrs in page.all("img"))
    drawings = page.all("svg")
    assert drawings
    assert all(attrs["role"] == "img" and attrs["aria-labelledby"] for attrs in drawings)
    assert len(page.all("title")) == 1 + len(drawings) == 1 + len(page.all("desc"))


def test_the_rows_of_a_table_have_as_many_cells_as_it_has_columns(page):
    tables = []
    for tag, _ in page.elements:
        if tag == "table":
            tables.append([])
        elif tag == "tr":
            tables[-1].append(0)
        elif tag in ("th", "td"):
            tables[-1][-1] += 1
    assert len(tables) >= 3
    assert all(len(set(widths)) == 1 and widths[0] >= 2 for widths in tables)


def test_every_figure_is_there_with_its_definition_and_settings():
    text = Page(html(reports.report())).text
    for said in (
        "97.8 % [96.2, 99.3]",
        "87.8 % [84.7, 90.8]",
        "Robust accuracy eps 0.05",
        "4.74 at delta = 1e-05",
        "∞ no promise",
        "not measurable too few examples",
        "Share of test examples that private classifies correctly.",
        "steps20",
        "examples540",
        "Failure plain, robustness not trustworthy: gradients die",
        "OK robust, robustness: no sign of gradient masking",
        "1 check",
        "zero on 90 % of the examples",
        "seed0",
        "budget.eps0.05, 0.1",
        "jax0.10.2",
        "seconds.all1.5",
    ):
        # (blocks of a cell follow each other without a blank)
        assert said.replace(" ", "") in text.replace(" ", "").replace("\xa0", ""), said


def test_a_curve_that_is_not_to_be_believed_says_so():
    captions = re.findall(r"<figcaption>(.*?)</figcaption>", html(reports.report()))
    assert captions == [
        caption + "<strong>Not trustworthy: <bdi>plain</bdi>.</strong>"
        for caption in ("Bands are intervals. ", " ", " ")
    ]
    rows = Page(html(reports.report())).elements
    assert sum("doubted" in attrs.get("class", "") for _, attrs in rows) == 3  # summary, two radii


def test_nothing_but_the_timings_differs():
    page = html(reports.report(seconds=1.5))
    assert html(reports.report(seconds=1.5)) == page
    again = html(reports.report(seconds=2.5))
    different = [(a, b) for a, b in zip(page.split("\n"), again.split("\n"), strict=True) if a != b]
    assert [line.count("seconds.all") for line, _ in different] == [1]


@pytest.mark.parametrize(
    "report",
    [
        AuditReport("Empty", (), {}, {}, {}, ()),
        AuditReport("No figures", ("m",), {}, {}, {}, (Section("s", "S"),)),
        AuditReport(
            "About the data",
            ("m",),
            {},
            {},
            {},
            (Section("s", "S", measurements=(Measurement("", "size", 3.0, "", headline="n"),)),),
        ),
    ],
    ids=lambda report: report.title,
)
def test_there_may_be_little_to_show(report):
    page = Page(html(report))
    assert report.title in page.text
    assert all(model in page.text for model in report.models)


def test_two_verdicts_alike_are_both_shown():
    report = reports.report()
    section = report.sections[0]
    twice = dataclasses.replace(section, verdicts=section.verdicts[:1] * 2)
    text = Page(html(dataclasses.replace(report, sections=(twice,)))).text
    assert text.count("plain, robustness not trustworthy") == 3  # the summary, the section, a check


def colours(part):
    return dict(re.findall(r"--([a-z0-9-]+): (#[0-9a-f]{6})", part))


def luminance(colour):
    channels = (int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5))
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def contrast(a, b):
    """As WCAG 2 defines it."""
    low, high = sorted((luminance(a), luminance(b)))
    return (high + 0.05) / (low + 0.05)


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_and_lines_stand_out_from_the_paper(scheme):
    light, dark = STYLE.split("@media screen and (prefers-color-scheme: dark)", 1)
    of = colours(light)
    if scheme == "dark":
        of |= colours(dark.split("}", 1)[0])
        assert of.keys() == colours(light).keys()
        assert luminance(of["paper"]) < 0.05
    for text in ("ink", "muted", "link", "failure"):
        assert contrast(of[text], of["paper"]) >= 4.5
    for level in ("ok", "note", "warning", "failure"):
        assert contrast(of[level], of[level + "-back"]) >= 4.5
    for i in range(6):
        assert contrast(of[f"series-{i}"], of["paper"]) >= 3  # graphical objects


def test_drawings_take_their_colours_from_the_page():
    drawings = "".join(re.findall(r"<svg.*?</svg>", html(reports.report()), re.DOTALL))
    found = set(re.findall(r"(?:fill|stroke):([^;\"]+)", drawings))
    assert {c for c in found if c != "none" and not c.startswith("var(--")} == set()
    used = set(re.findall(r"var\(--([a-z0-9-]+)", drawings))
    assert used <= colours(STYLE).keys()
