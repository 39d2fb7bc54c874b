"""The report as one page that needs nothing else: no network, no script, no font."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from spax.audit.render.figures import svg
from spax.audit.render.images import image_grid
from spax.audit.render.style import STYLE
from spax.audit.render.text import (
    Row,
    conclusions,
    doubted,
    escaped,
    figure,
    flat,
    headlines,
    interval,
    label,
    level,
    measurable,
    plain,
    rows,
    sentence,
    split,
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
    menu = "".join(f'<li><a href="#{place}">{escaped(title)}</a></li>' for place, title in links)
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        '<meta name="color-scheme" content="light dark">\n'
        '<meta http-equiv="Content-Security-Policy" content="default-src \'none\'; '
        "img-src data:; style-src 'unsafe-inline'\">\n"
        f"<title>{escaped(report.title)}</title>\n<style>\n{STYLE}</style>\n</head>\n<body>\n<main>\n"
        f"<header>\n<h1>{escaped(report.title)}</h1>\n{_subtitle(report)}</header>\n"
        f"{_summary(report)}"
        f'<nav aria-label="Sections"><ul>{menu}</ul></nav>\n'
        f"{''.join(sections)}{_repeat(report)}</main>\n</body>\n</html>\n"
    )


def _subtitle(report: AuditReport) -> str:
    count = len(report.models)
    what = f"{count} model{'' if count == 1 else 's'}"
    if "name" in report.data:
        what += f" on {plain(report.data['name'])}"
    if "spax" in report.versions:
        what += f", audited with spax {report.versions['spax']}"
    if "finished" in report.timings:
        what += f" on {plain(report.timings['finished'])[:10]}"
    return f'<p class="subtitle">{escaped(what)}</p>\n'


def _summary(report: AuditReport) -> str:
    columns, found = headlines(report)
    verdicts = conclusions(report)
    if not found:
        return '<section id="summary">\n<h2>Summary</h2>\n<p>No model was audited.</p></section>\n'
    body = [
        (_name(model), [(escaped(c), figures.get(c)) for c in columns])
        for model, figures in found.items()
    ]
    table = _table("Summary", "model", map(escaped, columns), body)
    note = '<p class="small">In brackets: 95 % confidence intervals.</p>\n' if columns else ""
    return f'<section id="summary">\n<h2>Summary</h2>\n{table}{note}{_list(verdicts)}</section>\n'


def _name(model: str) -> str:
    """A model's name, kept apart from the text around it where it is written from the right."""
    return f"<bdi>{escaped(model)}</bdi>" if model else "the data"


def _list(verdicts: Sequence[Verdict]) -> str:
    items = []
    for v in verdicts:
        sign, word = _BADGES[level(v)]
        said = "".join(map(escaped, sentence(v)))
        items.append(
            f'<li><span class="badge {level(v)}"><span aria-hidden="true">{sign}</span> {word}'
            f"</span> <p><strong>{_name(v.model)}</strong>, {said}</p></li>\n"
        )
    return f'<ul class="verdicts">\n{"".join(items)}</ul>\n' if items else ""


def _table(
    name: str,
    corner: str,
    columns: Iterable[str],
    body: Iterable[tuple[str, Iterable[tuple[str, Measurement | None]]]],
) -> str:
    """A table that scrolls on its own where it is wider than the page, by keyboard too.

    Where the page is narrow, the stylesheet makes a block of each row, in which the cells repeat
    the heads of their columns; the roles keep it a table for those who hear it.

    Args:
      name: what it is called for those who do not see it.
      corner: head of the first column.
      columns: heads of the others, as HTML.
      body: by row its head, as HTML, and its cells, each with the head of its column.

    Returns:
      The table.
    """
    columns = list(columns)
    head = "".join(f'<th scope="col" role="columnheader" class="figure">{c}</th>' for c in columns)
    lines = "".join(
        f'<tr role="row"><th scope="row" role="rowheader">{first}</th>'
        f"{''.join(_cell(column, m) for column, m in cells)}</tr>\n"
        for first, cells in body
    )
    return (
        f'<div class="scroll" role="region" aria-label="{escaped(name)}" tabindex="0">\n'
        f'<table class="figures" role="table" style="--columns:{max(len(columns), 1)}">\n'
        '<thead role="rowgroup"><tr role="row">'
        f'<th scope="col" role="columnheader">{corner}</th>{head}</tr></thead>\n'
        f'<tbody role="rowgroup">\n{lines}</tbody>\n</table></div>\n'
    )


def _cell(column: str, m: Measurement | None) -> str:
    lines = [f'<span class="column">{column}</span>']
    if m is None:
        lines.append("<span>-</span>")
    else:
        kind = "value" if measurable(m) else "missing"
        lines.append(f'<span class="{kind}">{escaped(figure(m))}</span>')
        lines += [f'<span class="interval">{escaped(i)}</span>' for i in (interval(m),) if i]
        kind = "remark doubted" if doubted(m) else "remark"
        lines += [f'<span class="{kind}">{escaped(note)}</span>' for note in (m.note,) if note]
    return f'<td class="figure" role="cell">{"".join(lines)}</td>'


def _section(section: Section, place: str, models: Sequence[str]) -> str:
    text = "".join(
        f"<p>{escaped(part)}</p>\n" for part in section.text.split("\n\n") if part.strip()
    )
    firsts, rest = split(section.verdicts)
    checks = _list(firsts)
    if rest:
        count = f"{len(rest)} check{'' if len(rest) == 1 else 's'}"
        checks += f"<details><summary>{count}</summary>\n{_list(rest)}</details>\n"
    doubt = _doubt(section)
    plots = "".join(
        f"<figure>\n<h3>{escaped(plot.title)}</h3>\n{svg(plot, prefix=f'{place}-{i}')}\n"
        f"{_caption(plot.caption, doubt)}</figure>\n"
        for i, plot in enumerate(section.plots)
    )
    grids = "".join(
        f'<figure>\n<h3>{escaped(images.title)}</h3>\n<div class="scroll" role="region" '
        f'aria-label="{escaped(images.title)}" tabindex="0">\n{image_grid(images)}</div>\n'
        f"{_caption(images.caption, doubt)}</figure>\n"
        for images in section.images
    )
    return (
        f'<section id="{place}">\n<h2>{escaped(section.title)}</h2>\n{text}{checks}'
        f'<div class="evidence">\n{plots}{_measurements(section, models)}</div>\n'
        f"{grids}</section>\n"
    )


def _caption(text: str, doubt: str) -> str:
    return f"<figcaption>{escaped(text)}{doubt}</figcaption>\n" if text or doubt else ""


def _doubt(section: Section) -> str:
    """Names the models whose curves are not to be believed."""
    models = dict.fromkeys(m.model for m in section.measurements if doubted(m))
    names = ", ".join(map(_name, models))
    return f" <strong>Not trustworthy: {names}.</strong>" if names else ""


def _measurements(section: Section, models: Sequence[str]) -> str:
    """A column a model, a row a figure; the row's name opens to its definition and settings."""
    if not section.measurements:
        return ""
    present = dict.fromkeys(m.model for m in section.measurements)
    columns = [m for m in models if m in present] + [m for m in present if m not in models]
    body = (
        (_explained(row), [(_name(m), row.cells.get(m)) for m in columns])
        for row in rows(section.measurements)
    )
    return _table(f"{section.title}: figures", "figure", map(_name, columns), body)


def _explained(row: Row) -> str:
    which = ", ".join(value if key == "attack" else f"{key} {value}" for key, value in row.setting)
    name = escaped(label(row.name))
    if which:
        name += f' <span class="which">{escaped(which)}</span>'
    definitions = dict.fromkeys(m.definition for m in row.cells.values() if m.definition)
    said = "".join(f"<p>{escaped(d)}</p>" for d in definitions)
    said += _settings({name: dict(flat(m.settings)) for name, m in row.cells.items()})
    return f'<details><summary>{name}</summary><div class="meaning">{said}</div></details>'


def _settings(by_model: Mapping[str, Mapping[str, str]]) -> str:
    """Settings once where all models share them, else the value of each model."""
    names = dict.fromkeys(name for settings in by_model.values() for name in settings)
    items = []
    for name in names:
        values = {model: s[name] for model, s in by_model.items() if name in s}
        text = next(iter(values.values()))
        if len(set(values.values())) > 1 or len(values) < len(by_model):
            text = ", ".join(f"{model or 'the data'}: {value}" for model, value in values.items())
        items.append(f"<div><dt>{escaped(name)}</dt><dd>{escaped(text)}</dd></div>")
    return f"<dl>{''.join(items)}</dl>" if items else ""


def _rounded(value: Any) -> Any:
    """Seconds to the hundredth; `report.json` has all digits."""
    if isinstance(value, Mapping):
        return {name: _rounded(v) for name, v in value.items()}
    return round(value, 2) if isinstance(value, float) else value


def _repeat(report: AuditReport) -> str:
    """Everything needed to take the figures again, and how long it took."""
    blocks: list[tuple[str, Mapping[str, Any]]] = [
        ("Settings", report.settings),
        ("Data", report.data),
        ("Versions", report.versions),
        ("Timings", _rounded(report.timings)),
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
