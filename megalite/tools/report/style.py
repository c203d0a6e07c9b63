"""How a report looks, and what its switches show: style alone, no script."""

from collections.abc import Sequence

from megalite.tools.report.chart import NUM_COLOURS

STYLE = """
:root { color-scheme: light dark; --line: #ddd; --soft: #666; --paper: #fff; --ink: #1c1c1c;
  --colour-0: #0072b2; --colour-1: #d55e00; --colour-2: #009e73; --colour-3: #a4508b;
  --colour-4: #b8860b; --colour-5: #4a4a4a }
@media (prefers-color-scheme: dark) { :root { --line: #3a3d42; --soft: #a8abb0; --paper: #16181b;
  --ink: #e6e6e6; --colour-0: #56b4e9; --colour-1: #ff8a3d; --colour-2: #2fc79a;
  --colour-3: #dd8fc6; --colour-4: #e9b949; --colour-5: #b5b5b5 } }
* { box-sizing: border-box }
body { font: 15px/1.5 system-ui, sans-serif; max-width: 1400px; margin: 0 auto; padding: 1em;
  background: var(--paper); color: var(--ink) }
h1 { margin: 0 0 .3em } h2 { margin: 1.4em 0 .4em }
.switches { position: sticky; top: 0; z-index: 1; display: flex; flex-wrap: wrap; gap: .2em 1.2em;
  padding: .5em 0; background: var(--paper); border-bottom: 1px solid var(--line) }
.switches label { white-space: nowrap; cursor: pointer }
.switches label.run { border-bottom: 3px solid var(--run) }
.charts { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(100%, 400px), 1fr));
  gap: .8em }
figure { margin: 0; padding: .5em; border: 1px solid var(--line); border-radius: 4px; min-width: 0 }
figcaption { font-weight: 600 } figcaption .key { font-weight: 400; color: var(--soft) }
svg { display: block; width: 100%; height: auto; font-size: 12px }
svg text { fill: var(--ink) } svg .axis { fill: var(--soft) } svg line { stroke: var(--line) }
polyline { fill: none; stroke: var(--run); stroke-width: 1.5 }
.colour-0 { --run: var(--colour-0) } .colour-1 { --run: var(--colour-1) }
.colour-2 { --run: var(--colour-2) } .colour-3 { --run: var(--colour-3) }
.colour-4 { --run: var(--colour-4) } .colour-5 { --run: var(--colour-5) }
.smooth, svg.log { display: none }
body:has(#smooth:checked) .smooth { display: inline }
body:has(#smooth:checked) .raw { opacity: .25 }
body:has(#log:checked) svg.log { display: block }
body:has(#log:checked) svg.linear { display: none }
.scroll { overflow-x: auto }
table { border-collapse: collapse } pre { margin: 0; white-space: pre-wrap; font-size: 13px }
td, th { border: 1px solid var(--line); padding: 4px 8px; text-align: left; vertical-align: top }
td.number { text-align: right; font-variant-numeric: tabular-nums }
.samples td { min-width: 9em; overflow-wrap: anywhere }
@media (max-width: 640px) { table { font-size: 13px } td, th { padding: 3px 5px }
  .samples th { display: none }
  .samples td { display: block; border-width: 0 1px 1px } .samples tr { display: block;
  margin-bottom: .8em; border-top: 2px solid var(--soft) }
  .samples td::before { content: attr(data-of); display: block; color: var(--soft) } }
@media print { .switches { position: static } }
"""


def hiding(num_runs: int) -> str:
    """The rules by which each run's box hides its lines."""
    return "\n".join(
        f"body:has(#run-{run}:not(:checked)) polyline.run-{run} {{ display: none !important }}"
        for run in range(num_runs)
    )


def switches(runs: Sequence[str]) -> str:
    """The bar of boxes: one a run, with its colour, and those of smoothing and the axis.

    Args:
        runs: names, already escaped for HTML, in the order of their numbers.
    """
    boxes = [
        f'<label class="run colour-{number % NUM_COLOURS}"><input type="checkbox" '
        f'id="run-{number}" checked> {name}</label>'
        for number, name in enumerate(runs)
    ]
    boxes.append('<label><input type="checkbox" id="smooth"> smoothed</label>')
    boxes.append('<label><input type="checkbox" id="log"> logarithmic</label>')
    return f'<div class="switches">{"".join(boxes)}</div>'
