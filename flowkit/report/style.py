"""The style sheet of the report page: its colors, by light and dark, are variables on top."""

CSS = """\
:root {
  --ground: #f6f7f9; --card: #ffffff; --ink: #16202c; --faint: #5d6b7b; --line: #dfe4ea;
  --m0: #0a8f78; --m1: #2f6fd0; --m2: #d9780b; --m3: #8a55d4; --m4: #c23b72; --m5: #6b7a33;
  --wrong: #d2402f; --soft: #eef1f5;
}
@media (prefers-color-scheme: dark) {
  :root {
    --ground: #10151b; --card: #182029; --ink: #e7edf3; --faint: #93a1b0; --line: #2b3642;
    --m0: #2fc4a6; --m1: #6aa5f5; --m2: #f3a24b; --m3: #b690f0; --m4: #ec7ba6; --m5: #a9bb66;
    --wrong: #ff7b69; --soft: #212b36;
  }
}
* { box-sizing: border-box; }
html { -webkit-text-size-adjust: 100%; }
body {
  margin: 0; background: var(--ground); color: var(--ink);
  font: 15px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", Arial, sans-serif;
}
header, main, footer { max-width: 1120px; margin: 0 auto; padding: 0 24px; }
header { padding-top: 40px; }
.brand {
  margin: 0; color: var(--m0); font-size: 13px; font-weight: 600; letter-spacing: .08em;
  text-transform: uppercase;
}
h1 { margin: 2px 0 8px; font-size: 34px; line-height: 1.2; letter-spacing: -.02em; }
h2 { margin: 40px 0 0; font-size: 23px; letter-spacing: -.01em; }
h3 { margin: 0 0 4px; font-size: 17px; }
h4 { margin: 20px 0 6px; font-size: 14px; }
.mean h2 { margin: 0 0 4px; font-size: 17px; }
p { margin: 0; }
.facts, .hint, .faint, footer { color: var(--faint); }
.facts { margin: 2px 0 16px; }
.hint { margin-bottom: 14px; font-size: 14px; }
nav { margin: 4px 0 16px; }
nav a { margin-right: 16px; color: var(--m1); text-decoration: none; }
nav a:hover { text-decoration: underline; }
article {
  margin: 16px 0; padding: 20px 22px; background: var(--card); border: 1px solid var(--line);
  border-radius: 10px;
}
.tiles {
  display: grid;
  grid-template-columns: repeat(auto-fit, minmax(200px, 1fr)); gap: 16px;
}
.tile {
  padding: 14px 18px; background: var(--card);
  border: 1px solid var(--line); border-radius: 10px;
}
.tile:first-child { border-color: var(--m0); box-shadow: inset 0 0 0 1px var(--m0); }
.label, .small { color: var(--faint); font-size: 13px; overflow-wrap: anywhere; }
.figure { font-size: 32px; font-weight: 650; line-height: 1.25; letter-spacing: -.02em; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
th, td { padding: 8px 12px; text-align: left; }
th:first-child { padding-left: 0; }
td.n { text-align: right; white-space: nowrap; }
.methods { width: 100%; }
.methods thead th { color: var(--faint); font-size: 13px; font-weight: 500; }
.methods thead th:nth-child(n + 2):nth-child(-n + 4) { text-align: right; }
.methods tbody tr { border-top: 1px solid var(--line); }
.methods tbody th { min-width: 150px; font-weight: 600; }
.methods tbody th .faint { margin-left: 18px; font-size: 13px; font-weight: 400; }
.methods .faint { font-size: 13px; }
.methods td:last-child { width: 244px; }
.scale { display: flex; justify-content: space-between; width: 220px; }
.paper {
  min-width: 60%;
  border-top: 2px solid var(--ink); border-bottom: 2px solid var(--ink);
}
.paper thead { border-bottom: 1px solid var(--ink); }
.paper th { font-weight: 500; }
.paper thead th:not(:first-child) { text-align: right; }
.paper th, .paper td { padding: 4px 14px; }
.paper th:first-child { padding-left: 4px; }
.paper .published th { font-style: italic; }
.paper .published b { font-weight: 400; font-style: italic; }
.paper .first > * { border-top: 1px solid var(--line); }
.swatch {
  display: inline-block; width: 10px; height: 10px; margin-right: 8px; border-radius: 50%;
  background: currentColor;
}
.swatch.bar { width: 16px; border-radius: 3px; }
.key { margin-right: 18px; white-space: nowrap; }
.m0 { color: var(--m0); } .m1 { color: var(--m1); } .m2 { color: var(--m2); }
.m3 { color: var(--m3); } .m4 { color: var(--m4); } .m5 { color: var(--m5); }
svg { display: block; max-width: 100%; font: 12px system-ui, sans-serif; fill: var(--ink); }
svg .track { fill: var(--soft); stroke: none; }
.interval .track { stroke: var(--line); stroke-width: 2; }
.interval .whisker {
  stroke: currentColor; stroke-width: 4;
  stroke-opacity: .35; stroke-linecap: round;
}
.interval circle { fill: currentColor; }
.gain { display: grid; grid-template-columns: 170px 300px 1fr; gap: 2px 20px; align-items: center;
  padding: 8px 0; border-top: 1px solid var(--line); }
.gain:first-of-type { border-top: 0; }
.gain details { grid-column: 1 / -1; font-size: 14px; }
.gains .gained { fill: var(--m0); } .gains .lost { fill: var(--wrong); }
.gains .axis { stroke: var(--faint); }
summary { color: var(--faint); cursor: pointer; }
.videos {
  columns: 3 280px; margin: 6px 0 10px;
  padding-left: 18px; font-size: 12.5px; overflow-wrap: anywhere;
}
.columns {
  display: grid;
  grid-template-columns: repeat(auto-fit, minmax(min(440px, 100%), 1fr)); gap: 8px 32px;
}
.columns h4 { margin-top: 4px; }
.classes, .curves { width: 100%; }
.columns { overflow-x: auto; }
.classes { min-width: 400px; } .classes:only-child { min-width: 640px; }
.grid { stroke: var(--line); }
svg .faint { fill: var(--faint); }
.classes .bar { fill: currentColor; fill-opacity: .55; }
.classes .dot { fill: currentColor; stroke: var(--card); stroke-width: 1.5; }
.classes .value { font-variant-numeric: tabular-nums; }
.curve { fill: none; stroke: currentColor; stroke-width: 2; stroke-linejoin: round; }
.curves g rect, .curves g circle { fill: currentColor; }
.matrix { width: 100%; margin: 0 auto; }
.matrix .ground { fill: var(--soft); }
.matrix .right { fill: var(--m0); } .matrix .wrong { fill: var(--wrong); }
.matrix .number.strong { fill: var(--card); font-weight: 600; }
.pairs { columns: 3 270px; margin: 0; padding-left: 22px; font-size: 14px; }
.cards {
  display: grid;
  grid-template-columns: repeat(auto-fill, minmax(min(310px, 100%), 1fr)); gap: 16px;
}
figure { margin: 0; border: 1px solid var(--line); border-radius: 8px; overflow: hidden; }
.images { display: flex; gap: 2px; background: var(--soft); }
.images img { flex: 1 1 0; min-width: 0; width: 100%; object-fit: cover; }
.absent {
  padding: 10px 14px; background: var(--soft);
  color: var(--faint); font-size: 13px; overflow-wrap: anywhere;
}
figcaption { padding: 10px 14px 12px; overflow-wrap: anywhere; }
.taken { color: var(--faint); }
b.wrong { color: var(--wrong); }
.says { margin: 6px 0; padding: 0; font-size: 13.5px; list-style: none; }
.id { color: var(--faint); font: 12px ui-monospace, Menlo, Consolas, monospace; }
footer { margin-top: 32px; padding-top: 16px; padding-bottom: 40px; font-size: 13px; }
footer p, footer details { max-width: 80ch; margin-bottom: 8px; }
@media (max-width: 640px) {
  header, main, footer { padding-left: 14px; padding-right: 14px; }
  article { padding: 16px 14px; }
  .gain { grid-template-columns: 1fr; }
}
@media print { body { background: #fff; } article, figure, .tile { break-inside: avoid; } }
"""
