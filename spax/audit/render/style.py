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
@media (prefers-color-scheme: dark) {
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
main { max-width: 1120px; margin: 0 auto; padding: 2.5rem 1.25rem 4rem; }
header { margin-bottom: 2rem; }
h1 { font-size: clamp(1.6rem, 1.2rem + 2vw, 2.3rem); line-height: 1.2; margin: 0 0 .3rem;
  letter-spacing: -.015em; }
h2 { font-size: 1.3rem; line-height: 1.3; margin: 0 0 .7rem; letter-spacing: -.01em; }
h3 { font-size: 1rem; line-height: 1.4; margin: 0 0 .4rem; }
p { margin: 0 0 .9rem; max-width: 72ch; }
a { color: var(--link); }
.subtitle { color: var(--muted); margin: 0; }
section { margin: 0 0 2.8rem; scroll-margin-top: 1rem; }
section + section, nav + section { border-top: 1px solid var(--line); padding-top: 1.8rem; }
nav { margin: 0 0 2.2rem; }
nav ul { display: flex; flex-wrap: wrap; gap: .3rem 1.3rem; list-style: none; margin: 0;
  padding: 0; font-size: .92rem; }
.small, figcaption { color: var(--muted); font-size: .87rem; }
.scroll { overflow-x: auto; max-width: 100%; margin: 0 0 1rem; }
.scroll:focus-visible, a:focus-visible, summary:focus-visible { outline: 2px solid var(--link);
  outline-offset: 2px; }
table { border-collapse: collapse; font-size: .94rem; line-height: 1.4; }
th, td { text-align: left; vertical-align: top; padding: .5rem 1.4rem .5rem 0; font-weight: 400;
  overflow-wrap: normal; }
th:last-child, td:last-child { padding-right: .2rem; }
thead th { color: var(--muted); font-size: .85rem; vertical-align: bottom;
  border-bottom: 1px solid var(--muted); }
tbody tr { border-bottom: 1px solid var(--grid); }
tbody th { min-width: 7rem; max-width: 24rem; overflow-wrap: anywhere; }
thead th { max-width: 16rem; overflow-wrap: anywhere; }
#summary tbody th { font-weight: 600; }
.figure { text-align: right; min-width: 6.4rem; font-variant-numeric: tabular-nums; }
.figure > span { display: block; }
.value { font-weight: 600; white-space: nowrap; }
.interval { color: var(--muted); font-size: .85rem; white-space: nowrap; }
.missing { color: var(--muted); font-style: italic; }
.remark { color: var(--muted); font-size: .8rem; max-width: 15rem; margin-left: auto; }
.which { color: var(--muted); }
.badge { display: inline-block; white-space: nowrap; border-radius: 1rem; padding: .05rem .6rem;
  font-size: .84rem; font-weight: 600; }
.badge.ok { color: var(--ok); background: var(--ok-back); }
.badge.note { color: var(--note); background: var(--note-back); }
.badge.warning { color: var(--warning); background: var(--warning-back); }
.badge.failure { color: var(--failure); background: var(--failure-back); }
.verdicts { list-style: none; margin: 0 0 1rem; padding: 0; max-width: 80ch; }
.verdicts li { margin: 0 0 .45rem; }
details > summary { cursor: pointer; }
details > .verdicts { margin-top: .7rem; }
section > details { margin: 0 0 1.2rem; }
td details p, th details p { font-size: .88rem; margin: .4rem 0; color: var(--muted); }
dl { margin: .3rem 0 .4rem; font-size: .88rem; }
dl > div { display: grid; grid-template-columns: minmax(6.5rem, 11rem) minmax(0, 1fr); gap: .8rem;
  padding: .12rem 0; }
dt { color: var(--muted); }
dd { margin: 0; font-variant-numeric: tabular-nums; overflow-wrap: anywhere; }
.plots { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 26rem), 1fr));
  gap: 1.5rem 2rem; margin: 0 0 1.2rem; }
figure { margin: 0 0 1.2rem; max-width: 100%; min-width: 0; }
.plots figure { max-width: 36rem; margin: 0; }
figure > svg { display: block; width: 100%; height: auto; }
.images th { min-width: 4.5rem; font-weight: 600; vertical-align: middle; padding-right: 1rem; }
.images td { text-align: center; padding: .35rem .5rem .35rem 0; font-size: .8rem; }
.images tr { border: 0; }
.images img { display: block; width: 4.6rem; height: auto; image-rendering: pixelated;
  border: 1px solid var(--line); }
.images span { display: block; color: var(--muted); white-space: nowrap; }
.blocks { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 24rem), 1fr));
  gap: 1.2rem 2.5rem; }
@media (max-width: 30rem) {
  main { padding: 1.5rem 1rem 3rem; }
  th, td { padding-right: .9rem; }
}
@media print {
  :root { --paper: #fff; --ink: #000; --muted: #444; --grid: #ddd; --line: #bbb; }
  body { font-size: 10.5pt; }
  main { max-width: none; padding: 0; }
  nav { display: none; }
  .scroll { overflow: visible; }
  figure, tr { break-inside: avoid; }
  h2, h3 { break-after: avoid; }
}
"""
