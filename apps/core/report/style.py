"""The page's style: system fonts, one column on a phone, dark where the reader's system is."""

STYLE = """
:root { color-scheme: light dark;
  --paper: #fdfdfc; --card: #ffffff; --ink: #1c1e21; --soft: #656b73; --rule: #e4e5e7; --fill: #f4f5f5;
  --val: #2563c4; --train: #c2700c; --good: #1a7440; --bad: #a8501a; --warn: #fdf4e3; }
@media (prefers-color-scheme: dark) { :root {
  --paper: #16181b; --card: #1c1f23; --ink: #e6e7e9; --soft: #9aa1a9; --rule: #2f3338; --fill: #22262b;
  --val: #7fb0ff; --train: #f0ab5b; --good: #6fcf97; --bad: #f0a36b; --warn: #2e281c; } }
* { box-sizing: border-box; }
html { -webkit-text-size-adjust: 100%; text-size-adjust: 100%; }
body { margin: 0 auto; max-width: 62rem; padding: 2.5rem 1.25rem 5rem; background: var(--paper); color: var(--ink);
  font: 1rem/1.55 system-ui, -apple-system, "Segoe UI", Roboto, "Noto Sans", sans-serif; overflow-wrap: break-word; }
header { margin-bottom: 2rem; }
h1 { font-size: 1.75rem; line-height: 1.2; font-weight: 650; letter-spacing: -0.015em; margin: 0.15rem 0 0.6rem; }
h2 { font-size: 1.15rem; font-weight: 650; margin: 3rem 0 0.9rem; scroll-margin-top: 1rem; }
.results { max-width: 46rem; }
h3 { font-size: 0.95rem; font-weight: 600; margin: 1.5rem 0 0.4rem; }
p { margin: 0 0 0.8rem; max-width: 42rem; }
.over { color: var(--soft); font-size: 0.85rem; margin: 0; }
.lead { font-size: 1.1rem; line-height: 1.5; }
.lead b { font-weight: 650; font-variant-numeric: tabular-nums; }
nav { display: flex; flex-wrap: wrap; gap: 0.25rem 1.1rem; font-size: 0.9rem; margin-top: 1.2rem; }
a { color: var(--val); text-decoration: none; } a:hover { text-decoration: underline; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; width: 100%; font-size: 0.94rem; font-variant-numeric: tabular-nums; }
th, td { padding: 0.5rem 0 0.5rem 1.1rem; text-align: right; vertical-align: baseline;
  border-bottom: 1px solid var(--rule); }
th:first-child, td:first-child { text-align: left; padding-left: 0; }
th { color: var(--soft); font-weight: 500; font-size: 0.85rem; }
td small { display: block; font-size: 0.8rem; color: var(--soft); white-space: nowrap; }
td.ours { font-weight: 650; }
td small.good { color: var(--good); } td small.bad { color: var(--bad); }
.plain { font-size: 0.88rem; } .plain th, .plain td { padding-top: 0.28rem; padding-bottom: 0.28rem; }
.narrow { width: auto; } .narrow td { text-align: left; } .narrow td:first-child { color: var(--soft); }
.charts, .media { display: grid; gap: 1.6rem 2rem;
  grid-template-columns: repeat(auto-fit, minmax(min(100%, 24rem), 1fr)); }
figure { margin: 0; }
figcaption { font-size: 0.88rem; color: var(--soft); line-height: 1.45; margin-top: 0.45rem; }
.chart figcaption { display: flex; flex-wrap: wrap; gap: 0 1rem; margin: 0 0 0.3rem; }
.chart figcaption b { color: var(--ink); font-weight: 600; }
.chart svg { display: block; width: 100%; height: auto; }
.chart text { fill: var(--soft); font-size: 11px; font-variant-numeric: tabular-nums; }
.chart .axis { font-style: italic; }
.grid { stroke: var(--rule); stroke-width: 1; }
.line { fill: none; stroke: var(--soft); stroke-width: 1.6; stroke-linejoin: round; stroke-linecap: round; }
.line circle { fill: var(--soft); stroke: none; }
.line.val { stroke: var(--val); stroke-width: 2; } .line.val circle { fill: var(--val); }
.line.train, .line.step { stroke: var(--train); } .line.train circle, .line.step circle { fill: var(--train); }
.line.step { stroke-opacity: 0.45; stroke-width: 1; }
.line.baseline { stroke-dasharray: 5 4; }
.line circle.ring, .line.val circle.ring { fill: var(--paper); stroke: var(--val); stroke-width: 2; }
.key::before { content: ""; display: inline-block; width: 1.1em; margin-right: 0.4em; vertical-align: 0.28em;
  border-top: 2px solid var(--soft); }
.key.val::before { border-color: var(--val); } .key.train::before, .key.step::before { border-color: var(--train); }
.key.baseline::before { border-top-style: dashed; } .key.step::before { opacity: 0.45; }
.media img { display: block; width: 100%; height: auto; border-radius: 6px; background: #fff;
  border: 1px solid var(--rule); }
.compare { position: relative; --cut: 50%; }
.compare .before { position: absolute; inset: 0; clip-path: inset(0 calc(100% - var(--cut)) 0 0); }
.compare::after { content: ""; position: absolute; top: 0; bottom: 0; left: var(--cut); width: 2px; margin-left: -1px;
  background: #fff; box-shadow: 0 0 3px #000; pointer-events: none; }
.compare input { position: absolute; inset: 0; width: 100%; height: 100%; margin: 0; opacity: 0; cursor: ew-resize; }
.compare input:focus-visible { opacity: 0.25; }
.media audio { display: block; width: 100%; }
.media .score { font-variant-numeric: tabular-nums; white-space: nowrap; }
.note { background: var(--warn); border-radius: 6px; padding: 0.7rem 1rem; margin: 0 0 1rem; }
.note p { margin: 0; }
details { border-top: 1px solid var(--rule); } details:last-of-type { border-bottom: 1px solid var(--rule); }
.note details { border: 0; }
summary { cursor: pointer; padding: 0.6rem 0; font-weight: 500; }
details > :last-child { margin-bottom: 1rem; }
pre { margin: 0 0 1rem; padding: 0.8rem 1rem; background: var(--fill); border-radius: 6px; overflow-x: auto;
  font: 0.82rem/1.5 ui-monospace, "SF Mono", Menlo, Consolas, "DejaVu Sans Mono", monospace; }
pre.command { white-space: pre-wrap; overflow-wrap: anywhere; }
footer { margin-top: 3.5rem; color: var(--soft); font-size: 0.85rem; }
@media (max-width: 30rem) { body { padding: 1.5rem 1rem 4rem; } h1 { font-size: 1.5rem; } .lead { font-size: 1.05rem; }
  th, td { padding-left: 0.7rem; } table { font-size: 0.9rem; } }
@media print { nav { display: none; } body { max-width: none; } figure { break-inside: avoid; } }
"""
