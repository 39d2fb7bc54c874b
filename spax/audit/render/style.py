"""The page's stylesheet."""

__all__ = ["STYLE"]

STYLE = """\
:root {
  color-scheme: light dark;
  --paper: #ffffff; --ink: #1b1f24; --muted: #57606a; --grid: #e3e7eb; --line: #d0d7de;
  --raised: #f6f8fa; --link: #0b5cad;
  --ok: #116329; --ok-back: #dff5e4; --note: #0b5cad; --note-back: #e0effd;
  --warning: #7a4b00; --warning-back: #fdf0cf; --failure: #a3131c; --failure-back: #fde5e4;
  --series-0: #0b62a8; --series-1: #c44e00; --series-2: #00795c; --series-3: #a8437f;
  --series-4: #8a6d00; --series-5: #3f7fb5;
}
@media screen and (prefers-color-scheme: dark) {
  :root {
    --paper: #14171b; --ink: #e3e7ec; --muted: #9aa5b1; --grid: #2a3037; --line: #3a424b;
    --raised: #1c2026; --link: #7ab8f5;
    --ok: #6fd68a; --ok-back: #16301d; --note: #7ab8f5; --note-back: #15293d;
    --warning: #eebf5a; --warning-back: #37290b; --failure: #ff8f88; --failure-back: #3f1719;
    --series-0: #56b4e9; --series-1: #f08a3c; --series-2: #2fc49a; --series-3: #df8bbd;
    --series-4: #e0c341; --series-5: #9cc9ee;
  }
}
* { box-sizing: border-box; }
html { -webkit-text-size-adjust: 100%; text-size-adjust: 100%; }
body {
  margin: 0; background: var(--paper); color: var(--ink);
  font: 16px/1.55 system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", sans-serif;
  overflow-wrap: anywhere;
}
main { max-width: 76rem; margin: 0 auto; padding: 2.5rem 1.25rem 4rem; }
header { margin-bottom: 2rem; }
h1 { font-size: clamp(1.6rem, 1.2rem + 2vw, 2.2rem); line-height: 1.2; margin: 0 0 .3rem;
  letter-spacing: -.015em; }
h2 { font-size: 1.3rem; line-height: 1.3; margin: 0 0 .7rem; letter-spacing: -.01em; }
h3 { font-size: 1rem; line-height: 1.4; margin: 0 0 .5rem; }
p { margin: 0 0 .9rem; max-width: 72ch; }
a { color: var(--link); }
.subtitle { color: var(--muted); margin: 0; }
section { margin: 0 0 2.6rem; scroll-margin-top: 1rem; }
section + section, nav + section { border-top: 1px solid var(--line); padding-top: 1.7rem; }
nav { margin: 0 0 2.2rem; }
nav ul { display: flex; flex-wrap: wrap; gap: .3rem 1.3rem; list-style: none; margin: 0;
  padding: 0; font-size: .92rem; }
.small, figcaption { color: var(--muted); font-size: .87rem; }
.scroll { overflow-x: auto; max-width: 100%; margin: 0 0 1rem; }
.scroll:focus-visible, a:focus-visible, summary:focus-visible { outline: 2px solid var(--link);
  outline-offset: 2px; }

table { border-collapse: collapse; font-size: .94rem; line-height: 1.4; }
th, td { text-align: left; vertical-align: top; padding: .42rem 1.5rem .42rem 0; font-weight: 400;
  overflow-wrap: normal; }
th:last-child, td:last-child { padding-right: .2rem; }
thead th { color: var(--muted); font-size: .85rem; vertical-align: bottom; max-width: 14rem;
  overflow-wrap: anywhere; border-bottom: 1px solid var(--muted); }
tbody tr { border-bottom: 1px solid var(--grid); }
tbody th { min-width: 11rem; max-width: 22rem; overflow-wrap: anywhere; }
#summary tbody th { font-weight: 600; min-width: 7rem; }
.figure { text-align: right; min-width: 6rem; font-variant-numeric: tabular-nums; }
.figure > span { display: block; }
.figure > .column { display: none; }
.value { font-weight: 600; white-space: nowrap; }
.interval { color: var(--muted); font-size: .85rem; white-space: nowrap; }
.missing { color: var(--muted); font-style: italic; }
.remark { color: var(--muted); font-size: .8rem; max-width: 9.5rem; margin-left: auto; }
.remark.doubted { color: var(--failure); font-weight: 600; }
figcaption strong { color: var(--failure); }
.which { color: var(--muted); }

.badge { display: inline-block; white-space: nowrap; border-radius: 1rem; padding: .05rem .6rem;
  font-size: .84rem; font-weight: 600; justify-self: start; align-self: start; }
.badge.ok { color: var(--ok); background: var(--ok-back); }
.badge.note { color: var(--note); background: var(--note-back); }
.badge.warning { color: var(--warning); background: var(--warning-back); }
.badge.failure { color: var(--failure); background: var(--failure-back); }
.verdicts { list-style: none; margin: 0 0 1.1rem; padding: 0; }
.verdicts li { display: grid; grid-template-columns: 6.4rem minmax(0, 1fr); margin: 0 0 .4rem; }
.verdicts p { margin: 0; max-width: 80ch; }

summary { cursor: pointer; }
details > .verdicts { margin-top: .7rem; }
section > details { margin: 0 0 1.2rem; }
/* Without a width of its own: a column does not grow when an explanation in it is opened. */
.meaning { contain: inline-size; font-size: .87rem; color: var(--muted); padding: .3rem 0; }
.meaning p { margin: 0 0 .4rem; }
dl { margin: 0; font-size: .88rem; }
dl > div { display: grid; grid-template-columns: minmax(7rem, 13rem) minmax(0, 1fr); gap: .8rem;
  padding: .12rem 0; }
dt { color: var(--muted); }
dd { margin: 0; font-variant-numeric: tabular-nums; overflow-wrap: anywhere; }
.meaning dl > div { display: block; padding: 0; }
.meaning dt, .meaning dd { display: inline; }
.meaning dd { color: var(--ink); padding-left: .4em; }

.evidence { display: flex; flex-wrap: wrap; align-items: flex-start; gap: 1.2rem 2.5rem; }
figure { margin: 0 0 1rem; max-width: 100%; min-width: 0; }
.evidence > figure { flex: 1 1 22rem; max-width: 31rem; }
figure > svg { display: block; width: 100%; height: auto; }
.images tbody th { min-width: 5rem; max-width: 12rem; overflow-wrap: break-word; font-weight: 600;
  vertical-align: middle; }
.images td { text-align: center; padding: .35rem .5rem .35rem 0; font-size: .8rem; }
.images tbody tr { border: 0; }
.images img { display: block; width: 4.6rem; height: auto; border: 1px solid var(--line); }
.images .coarse { image-rendering: pixelated; }
.images span { display: block; color: var(--muted); white-space: nowrap; }
.blocks { columns: 24rem; column-gap: 2.5rem; }
.blocks > div { break-inside: avoid; margin: 0 0 1.4rem; }

@media screen and (max-width: 44rem) {
  main { padding: 1.5rem 1rem 3rem; }
  .verdicts li { display: block; margin: 0 0 .6rem; }
  .verdicts p { display: inline; }
  .figures, .figures tbody, .images, .images tbody { display: block; }
  .figures thead { display: none; }
  .figures tr { display: grid; gap: .2rem .6rem; padding: .55rem 0;
    --even: calc((100% - (var(--columns) - 1) * .6rem) / var(--columns));
    grid-template-columns: repeat(auto-fill, minmax(max(6.4rem, var(--even)), 1fr)); }
  .figures tbody th { grid-column: 1 / -1; max-width: none; padding: 0; }
  .figures td { text-align: left; min-width: 0; padding: 0; }
  .figure > .column { display: block; color: var(--muted); font-size: .8rem;
    overflow-wrap: anywhere; }
  .remark { margin-left: 0; max-width: none; }
  .images tr { display: flex; flex-wrap: wrap; padding: .3rem 0; }
  .images tbody th { flex: 1 0 100%; max-width: none; padding: 0; }
  .evidence > * { flex: 1 1 100%; }
  .interval { white-space: normal; }
  dl > div { grid-template-columns: minmax(7rem, 11rem) minmax(0, 1fr); }
}
@media print {
  body { font-size: 10pt; }
  main { max-width: none; padding: 0; }
  table { font-size: 8.5pt; }
  th, td { padding-right: .8rem; }
  .images img { width: 3.6rem; }
  nav { display: none; }
  .scroll { overflow: visible; }
  figure, tr, .verdicts li { break-inside: avoid; }
  h2, h3 { break-after: avoid; }
  .evidence > figure { max-width: 24rem; }
}
"""
