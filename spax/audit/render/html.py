"""The report as one page that needs nothing else: no network, no script, no font."""

from collections.abc import Iterable, Mapping, Sequence
from html import escape
from typing import Any

from spax.audit.render.figures import image_grid, svg
from spax.audit.render.style import STYLE
from spax.audit.render.text import (
    Row,
    clean,
    conclusions,
    figure,
    flat,
    grounds,
    headlines,
    interval,
    label,
    measurable,
    plain,
    rows,
)
from spax.audit.sections import AuditReport, Measurement, Section, Verdict

__all__ = ["html"]

_BADGES = {
    "ok": ("✓", "OK"),
    "note": ("i", "Note"),
    "warning": ("!", "Warning"),
    "failure": ("✕", "Failure"),
}


def html(report: AuditReport) -> str:
    """The report as a page: the summary first, then a section a probe, then how to repeat it.

    Args:
      report: the report.

    Returns:
      A whole HTML document; all names and values of the report are escaped.

    Example:
      >>> page = html(AuditReport("Audit", ("a<b",), {}, {}, {}, ()))
      >>> "a&lt;b" in page, "a<b" in page
      (True, False)
    """
    sections = [
        _section(section, f"s{i}", report.models) for i, section in enumerate(report.sections)
    ]
    links = [(f"s{i}", section.title) for i, section in enumerate(report.sections)]
    links.append(("repeat", "How to repeat it"))
    menu = "".join(f'<li><a href="#{place}">{_text(title)}</a></li>' for place, title in links)
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        '<meta name="color-scheme" content="light dark">\n'
        '<meta http-equiv="Content-Security-Policy" content="default-src \'none\'; '
        "img-src data:; style-src 'unsafe-inline'\">\n"
        f"<title>{_text(report.title)}</title>\n<style>\n{STYLE}</style>\n</head>\n<body>\n<main>\n"
        f"<header>\n<h1>{_text(report.title)}</h1>\n{_subtitle(report)}</header>\n"
        f"{_summary(report)}"
        f'<nav aria-label="Sections"><ul>{menu}</ul></nav>\n'
        f"{''.join(sections)}{_repeat(report)}</main>\n</body>\n</html>\n"
    )


def _text(text: object) -> str:
    return escape(clean(text))


def _subtitle(report: AuditReport) -> str:
    count = len(report.models)
    what = f"{count} model{'' if count == 1 else 's'}"
    if "name" in report.data:
        what += f" on {plain(report.data['name'])}"
    if "spax" in report.versions:
        what += f", audited with spax {report.versions['spax']}"
    return f'<p class="subtitle">{_text(what)}</p>\n'


def _summary(report: AuditReport) -> str:
    columns, found = headlines(report)
    verdicts = conclusions(report)
    if not found:
        return '<section id="summary"><h2>Summary</h2><p>No model was audited.</p></section>\n'
    judged = '<th scope="col">verdict</th>' if verdicts else ""
    head = "".join(f'<th scope="col" class="figure">{_text(c)}</th>' for c in columns)
    body = []
    for model, figures in found.items():
        cells = "".join(_cell(figures.get(c)) for c in columns)
        if judged:
            cells += f"<td>{_badges(v for v in verdicts if v.model == model)}</td>"
        body.append(f'<tr><th scope="row">{_model(model)}</th>{cells}</tr>\n')
    table = _table(
        f'<thead><tr><th scope="col">model</th>{head}{judged}</tr></thead>\n'
        f"<tbody>\n{''.join(body)}</tbody>",
        "Summary",
    )
    note = '<p class="small">In brackets: 95 % confidence intervals.</p>\n' if columns else ""
    return (
        f'<section id="summary">\n<h2>Summary</h2>\n{table}{note}{_verdicts(verdicts)}</section>\n'
    )


def _model(name: str) -> str:
    return _text(name) if name else "the data"


def _badges(verdicts: Iterable[Verdict]) -> str:
    return " ".join(_badge(v.level, label(v.name)) for v in verdicts) or "-"


def _badge(level: str, text: str = "") -> str:
    sign, word = _BADGES.get(level, _BADGES["note"])
    said = f"{text}: {word}" if text else word
    kind = level if level in _BADGES else "note"
    return f'<span class="badge {kind}"><span aria-hidden="true">{sign}</span> {_text(said)}</span>'


def _verdicts(verdicts: Sequence[Verdict]) -> str:
    items = "".join(
        f"<li>{_badge(v.level)} <strong>{_model(v.model)}</strong>, "
        f"{_text(label(v.name).lower())}: {_text(v.text)}</li>\n"
        for v in verdicts
    )
    return f'<ul class="verdicts">\n{items}</ul>\n' if items else ""


def _table(inside: str, name: str) -> str:
    """A table that scrolls on its own where it is wider than the page, by keyboard too."""
    return (
        f'<div class="scroll" role="region" aria-label="{_text(name)}" tabindex="0">'
        f"<table>\n{inside}\n</table></div>\n"
    )


def _cell(m: Measurement | None) -> str:
    if m is None:
        return '<td class="figure">-</td>'
    range_ = interval(m)
    lines = f'<span class="value">{_text(figure(m))}</span>'
    if not measurable(m):
        lines = f'<span class="missing">{_text(figure(m))}</span>'
    if range_:
        lines += f'<span class="interval">{_text(range_)}</span>'
    if m.note:
        lines += f'<span class="remark">{_text(m.note)}</span>'
    return f'<td class="figure">{lines}</td>'


def _section(section: Section, place: str, models: Sequence[str]) -> str:
    text = "".join(f"<p>{_text(part)}</p>\n" for part in section.text.split("\n\n") if part.strip())
    plots = "".join(
        f"<figure>\n<h3>{_text(plot.title)}</h3>\n{svg(plot, prefix=f'{place}-{i}')}\n"
        f"{_caption(plot.caption)}</figure>\n"
        for i, plot in enumerate(section.plots)
    )
    grids = "".join(
        f'<figure>\n<h3>{_text(images.title)}</h3>\n<div class="scroll" role="region" '
        f'aria-label="{_text(images.title)}" tabindex="0">{image_grid(images)}</div>\n'
        f"{_caption(images.caption)}</figure>\n"
        for images in section.images
    )
    firsts = [v for v in section.verdicts if v not in grounds(section.verdicts)]
    checks = _verdicts(firsts)
    rest = grounds(section.verdicts)
    if rest:
        checks += f"<details><summary>{len(rest)} checks</summary>\n{_verdicts(rest)}</details>\n"
    return (
        f'<section id="{place}">\n<h2>{_text(section.title)}</h2>\n{text}{checks}'
        + (f'<div class="plots">\n{plots}</div>\n' if plots else "")
        + grids
        + _measurements(section, models)
        + "</section>\n"
    )


def _caption(text: str) -> str:
    return f"<figcaption>{_text(text)}</figcaption>\n" if text else ""


def _measurements(section: Section, models: Sequence[str]) -> str:
    """A column a model, a row a figure; the row's name opens to its definition and settings."""
    if not section.measurements:
        return ""
    present = dict.fromkeys(m.model for m in section.measurements)
    columns = [m for m in models if m in present] + [m for m in present if m not in models]
    head = "".join(f'<th scope="col" class="figure">{_model(m)}</th>' for m in columns)
    body = "".join(
        f'<tr><th scope="row">{_explained(row)}</th>'
        f"{''.join(_cell(row.cells.get(m)) for m in columns)}</tr>\n"
        for row in rows(section.measurements)
    )
    return _table(
        f'<thead><tr><th scope="col">figure</th>{head}</tr></thead>\n<tbody>\n{body}</tbody>',
        f"{section.title}: figures",
    )


def _explained(row: Row) -> str:
    which = ", ".join(value if key == "attack" else f"{key} {value}" for key, value in row.setting)
    name = _text(label(row.name)) + (f' <span class="which">{_text(which)}</span>' if which else "")
    definitions = dict.fromkeys(m.definition for m in row.cells.values() if m.definition)
    said = "".join(f"<p>{_text(d)}</p>" for d in definitions)
    settings = _settings({name: dict(flat(m.settings)) for name, m in row.cells.items()})
    return f"<details><summary>{name}</summary>{said}{settings}</details>"


def _settings(by_model: Mapping[str, Mapping[str, str]]) -> str:
    """Settings once where all models share them, else the value of each model."""
    names = dict.fromkeys(name for settings in by_model.values() for name in settings)
    items = []
    for name in names:
        values = {model: s[name] for model, s in by_model.items() if name in s}
        same = len(set(values.values())) == 1 and len(values) == len(by_model)
        text = next(iter(values.values()))
        if not same:
            text = ", ".join(f"{model or 'data'}: {value}" for model, value in values.items())
        items.append(f"<div><dt>{_text(name)}</dt><dd>{_text(text)}</dd></div>")
    return f"<dl>{''.join(items)}</dl>" if items else ""


def _repeat(report: AuditReport) -> str:
    """Everything needed to take the figures again, and how long it took."""
    blocks: list[tuple[str, Mapping[str, Any]]] = [
        ("Settings", report.settings),
        ("Data", report.data),
        ("Versions", report.versions),
        ("Timings", report.timings),
    ]
    return (
        '<section id="repeat">\n<h2>How to repeat it</h2>\n'
        "<p>The same settings, data, versions and machine give the same figures; only the timings "
        'differ.</p>\n<div class="blocks">\n'
        + "".join(
            f"<div><h3>{title}</h3>{_settings({'': dict(flat(pairs))})}</div>\n"
            for title, pairs in blocks
            if pairs
        )
        + "</div>\n</section>\n"
    )
