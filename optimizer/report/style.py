"""The one style sheet of ``report.html``: light and dark, narrow and wide, screen and paper."""

from __future__ import annotations

import base64
import hashlib

SHEET = """
:root {
  color-scheme: light dark;
  --page: #f6f4f0; --card: #ffffff; --ink: #1c1f24; --muted: #5d6570; --line: #e2ddd4; --soft: #f1ede6;
  --source: #77808c; --result: #ab4a17; --good: #23744a; --bad: #b0332a; --maybe: #826005;
  --good-soft: #e2f1e8; --bad-soft: #f9e4e1; --maybe-soft: #f8eed2; --plain-soft: #ebe7df;
}
@media (prefers-color-scheme: dark) {
  :root {
    --page: #121417; --card: #1b1e23; --ink: #e9e6e1; --muted: #a2a9b3; --line: #333840; --soft: #23272d;
    --source: #949da9; --result: #f09a56; --good: #6cc998; --bad: #f08b80; --maybe: #e2bb58;
    --good-soft: #17372a; --bad-soft: #421f1c; --maybe-soft: #3a3015; --plain-soft: #2b3037;
  }
}
* { box-sizing: border-box; }
html { -webkit-text-size-adjust: 100%; scroll-behavior: smooth; }
body {
  margin: 0; background: var(--page); color: var(--ink);
  font: 16px/1.55 system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", Arial, sans-serif;
  font-variant-numeric: tabular-nums; overflow-wrap: anywhere;
}
main { max-width: 62rem; margin: 0 auto; padding: 1.5rem 1.25rem 4rem; }
h1, h2, h3 { line-height: 1.25; text-wrap: balance; }
h1 { font-size: clamp(1.6rem, 1.2rem + 2vw, 2.4rem); margin: .2rem 0 .6rem; letter-spacing: -.015em; }
h2 { font-size: 1.2rem; margin: 0 0 .35rem; letter-spacing: -.005em; }
h3 { font-size: 1rem; margin: 1.3rem 0 .3rem; }
p { margin: .5rem 0; }
a { color: inherit; }
.lead { font-size: 1.15rem; max-width: 46rem; }
.note { color: var(--muted); font-size: .9rem; max-width: 48rem; }
.brand { display: flex; flex-wrap: wrap; gap: .3rem 1rem; justify-content: space-between; color: var(--muted);
  font-size: .85rem; }
.brand b { color: var(--result); letter-spacing: .04em; }
nav { display: flex; flex-wrap: wrap; gap: .4rem; margin: 1.2rem 0 0; }
nav a { font-size: .85rem; text-decoration: none; padding: .2rem .7rem; border: 1px solid var(--line);
  border-radius: 99px; color: var(--muted); background: var(--card); }
nav a:hover, nav a:focus-visible { color: var(--ink); border-color: var(--muted); }
section { background: var(--card); border: 1px solid var(--line); border-radius: 12px; padding: 1.2rem 1.3rem;
  margin-top: 1.1rem; }
.badge { display: inline-block; padding: .08rem .6rem; border-radius: 99px; font-size: .82rem; font-weight: 600;
  white-space: nowrap; background: var(--plain-soft); color: var(--muted); }
.badge.good { background: var(--good-soft); color: var(--good); }
.badge.bad { background: var(--bad-soft); color: var(--bad); }
.badge.maybe { background: var(--maybe-soft); color: var(--maybe); }
.badges { display: flex; flex-wrap: wrap; gap: .4rem; }
.tiles { display: grid; grid-template-columns: repeat(auto-fit, minmax(10.5rem, 1fr)); gap: .8rem; margin-top: 1.2rem; }
.tile { background: var(--card); border: 1px solid var(--line); border-radius: 12px; padding: .8rem 1rem; }
.tile .what { color: var(--muted); font-size: .85rem; }
.tile .big { font-size: 1.75rem; font-weight: 650; line-height: 1.2; letter-spacing: -.02em; }
.tile .span { color: var(--muted); font-size: .85rem; }
.tile.first .big { color: var(--result); }
.scroll { overflow-x: auto; margin: .6rem 0; }
table { border-collapse: collapse; width: 100%; font-size: .92rem; }
th, td { text-align: left; vertical-align: top; padding: .38rem .7rem .38rem 0; border-bottom: 1px solid var(--line); }
thead th { color: var(--muted); font-weight: 500; font-size: .85rem; white-space: nowrap; }
tbody th { font-weight: 500; min-width: 8rem; }
td, thead th { overflow-wrap: break-word; }
tbody tr:last-child > * { border-bottom: 0; }
.num { text-align: right; white-space: nowrap; }
.key { display: inline-block; width: .7em; height: .7em; border-radius: 3px; margin-right: .35em; }
.key.source { background: var(--source); } .key.result { background: var(--result); }
.legend { display: flex; gap: 1.2rem; flex-wrap: wrap; font-size: .85rem; color: var(--muted); }
.bar { display: block; width: 100%; min-width: 5rem; height: .5rem; margin: .22rem 0; background: var(--soft);
  border-radius: 2px; }
rect.source { fill: var(--source); } rect.result { fill: var(--result); } rect.bad { fill: var(--bad); }
code, pre { font: .86em/1.5 ui-monospace, SFMono-Regular, Menlo, Consolas, monospace; }
code { background: var(--soft); border-radius: 4px; padding: .08em .35em; }
pre { background: var(--soft); border-radius: 8px; padding: .8rem 1rem; white-space: pre-wrap; margin: .6rem 0; }
pre code { background: none; padding: 0; }
figure { margin: .8rem 0 0; min-width: 0; }
figure > svg { display: block; width: 100%; max-width: 34rem; height: auto; margin: 0 auto; }
figure text { font-family: inherit; }
figcaption { color: var(--muted); font-size: .88rem; margin: .3rem 0 .2rem; }
details { margin: .3rem 0; }
summary { cursor: pointer; color: var(--muted); font-size: .88rem; }
summary:hover { color: var(--ink); }
ul { padding-left: 1.2rem; margin: .4rem 0; }
li { margin: .2rem 0; }
dl { display: grid; grid-template-columns: max-content 1fr; gap: .25rem 1.2rem; margin: .5rem 0; font-size: .92rem; }
dt { color: var(--muted); }
dd { margin: 0; }
footer { color: var(--muted); font-size: .85rem; margin-top: 1.6rem; }
@media (max-width: 40rem) {
  main { padding: 1rem .8rem 3rem; }
  section { padding: 1rem .9rem; }
  .tiles { grid-template-columns: 1fr 1fr; gap: .6rem; }
  .tile .big { font-size: 1.4rem; }
  dl { grid-template-columns: 1fr; gap: 0; }
  dd { margin-bottom: .5rem; }
  table.stack, table.stack tbody, table.stack tr, table.stack th, table.stack td { display: block; width: auto; }
  table.stack thead { display: none; }
  table.stack tr { border-bottom: 1px solid var(--line); padding: .5rem 0; }
  table.stack tr:last-child { border-bottom: 0; }
  table.stack th, table.stack td { border: 0; padding: .1rem 0; text-align: left; white-space: normal; }
  table.stack td.num { display: inline-block; margin-right: 1.2rem; }
  table.stack td:empty { display: none; }
  table.stack td[data-label]::before { content: attr(data-label) ": "; color: var(--muted); }
}
@media print {
  :root { --page: #fff; --card: #fff; --ink: #000; --muted: #444; --line: #ccc; --soft: #f3f3f3; --source: #77808c;
    --result: #ab4a17; --good: #23744a; --bad: #b0332a; --maybe: #826005; --good-soft: #e2f1e8;
    --bad-soft: #f9e4e1; --maybe-soft: #f8eed2; --plain-soft: #eee; }
  * { print-color-adjust: exact; -webkit-print-color-adjust: exact; }
  body { font-size: 10.5pt; }
  main { max-width: none; padding: 0; }
  nav { display: none; }
  section, .tile { border-radius: 0; border-width: 1px 0 0; padding: .7rem 0 0; }
  .tiles { grid-template-columns: repeat(4, 1fr); }
  h2, h3, thead { break-after: avoid; }
  figure, tr, .tile, pre { break-inside: avoid; }
  .scroll { overflow: visible; }
  details::details-content { content-visibility: visible; height: auto; }
  @page { margin: 16mm; }
}
"""


def policy() -> str:
    """What a browser may load for the page: this style sheet, by its digest, and nothing else."""
    digest = base64.b64encode(hashlib.sha256(SHEET.encode()).digest()).decode()
    return f"default-src 'none'; style-src 'sha256-{digest}'; base-uri 'none'; form-action 'none'"
