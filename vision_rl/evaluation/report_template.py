"""The page of report.py, as a Jinja template (autoescaped: replies are text, whatever they hold)."""

from __future__ import annotations

TEMPLATE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{{ summary.task }}: {{ summary.model }} on {{ data }}</title>
<style>
:root { --true: #0a8f3c; --predicted: #d6246e; --line: #d8dce2; --soft: #f5f6f8; --muted: #5b6472; --ink: #1b1f24; }
* { box-sizing: border-box; }
body { font: 15px/1.5 system-ui, sans-serif; color: var(--ink); margin: 0 auto; max-width: 1180px; padding: 24px; }
h1 { font-size: 24px; margin: 0; overflow-wrap: anywhere; }
h2 { font-size: 18px; margin: 36px 0 10px; border-bottom: 1px solid var(--line); padding-bottom: 4px; }
.muted { color: var(--muted); }
.tiles { display: flex; flex-wrap: wrap; gap: 12px; margin: 18px 0; }
.tile { background: var(--soft); border-radius: 8px; padding: 12px 18px; min-width: 170px; }
.tile b { display: block; font-size: 26px; line-height: 1.2; }
table { border-collapse: collapse; margin: 8px 0; }
th, td { text-align: right; padding: 4px 14px 4px 0; border-bottom: 1px solid var(--line); }
th:first-child, td:first-child { text-align: left; overflow-wrap: anywhere; }
td { font-variant-numeric: tabular-nums; }
td small { color: var(--muted); display: block; white-space: nowrap; }
.tables { display: flex; flex-wrap: wrap; gap: 0 48px; }
.bar { display: flex; height: 26px; border-radius: 5px; overflow: hidden; max-width: 760px; }
.bar span { min-width: 0; }
.legend span { display: inline-block; margin-right: 18px; }
.legend i { display: inline-block; width: 12px; height: 12px; border-radius: 3px; margin-right: 6px; }
.cases { display: grid; grid-template-columns: repeat(auto-fill, minmax(340px, 1fr)); gap: 18px; }
.case { border: 1px solid var(--line); border-radius: 8px; padding: 12px; overflow-wrap: anywhere; }
.case p { margin: 6px 0; }
.case pre { background: var(--soft); border-radius: 6px; padding: 8px; margin: 6px 0; white-space: pre-wrap;
  max-height: 190px; overflow: auto; font-size: 13px; }
.pictures { display: flex; flex-wrap: wrap; gap: 8px; }
figure { margin: 0; flex: 1 0 auto; width: 100%; }
figure.tall { flex: 0 1 50%; width: 50%; }
figure + figure { flex: 0 1 46%; }
figcaption { font-size: 12px; color: var(--muted); }
.picture { position: relative; line-height: 0; background: var(--soft); }
.picture img { width: 100%; height: auto; }
.picture svg { position: absolute; left: 0; top: 0; width: 100%; height: 100%; overflow: hidden;
  filter: drop-shadow(0 0 1.5px #fff) drop-shadow(0 0 1px #fff); }
.box { fill: none; stroke-width: 2.5; vector-effect: non-scaling-stroke; }
.box.true { stroke: var(--true); }
.box.predicted { stroke: var(--predicted); stroke-dasharray: 7 3; }
.score { font-weight: 600; }
details { margin-top: 8px; }
summary { cursor: pointer; color: var(--muted); }
</style>
</head>
<body>
<h1>{{ summary.task }}: {{ summary.model }}</h1>
<div class="muted">on {{ data }}. {{ coverage }}</div>
<div class="tiles">
{% for name in headline %}
{% set figure = summary.metrics[name] %}
<div class="tile">{{ name }}<b>{{ show(name, figure.value) }}</b>
<span class="muted">{{ interval(name, figure) }}</span></div>
{% endfor %}
</div>
{% if summary.outcomes %}
<h2>Outcomes</h2>
{% set colours = {"right": "#0a8f3c", "wrong place": "#e0a100", "wrong space": "#b0509e", "wrong format": "#c0392b"} %}
<div class="bar">{% for name, count in summary.outcomes.items() %}
<span style="flex: {{ count }}; background: {{ colours[name] }}" title="{{ name }}: {{ count }}"></span>
{% endfor %}</div>
<p class="legend">{% for name, count in summary.outcomes.items() %}
<span><i style="background: {{ colours[name] }}"></i>{{ name }}: {{ count }}</span>
{% endfor %}</p>
{% endif %}
<h2>Figures</h2>
<table><tr><th>measure</th><th>value</th><th>95 % interval</th><th>rows</th></tr>
{% for name, figure in summary.metrics.items() %}
<tr><td>{{ name }}</td><td>{{ show(name, figure.value) }}</td><td>{{ interval(name, figure) }}</td>
<td>{{ figure.n }}</td></tr>
{% endfor %}
</table>
<div class="tables">
{% for title, values in summary.breakdowns.items() %}
<section><h2>By {{ title }}</h2>
<table><tr><th>{{ title }}</th>{% for name in headline %}<th>{{ name }}</th>{% endfor %}<th>rows</th></tr>
{% for value, figures in values.items() %}
<tr><td>{{ value }}</td>
{% for name in headline %}
<td>{{ show(name, figures[name].value) }}<small>{{ interval(name, figures[name]) }}</small></td>
{% endfor %}
<td>{{ figures[headline[0]].n }}</td></tr>
{% endfor %}
</table></section>
{% endfor %}
{% if summary.tools %}
<section><h2>Tools</h2>
<table><tr><th>measure</th><th>share</th></tr>
{% for name, value in tool_rows(summary.tools) %}
<tr><td>{{ name }}</td><td>{{ "%.2f %%"|format(100 * value) }}</td></tr>
{% endfor %}
</table></section>
{% endif %}
</div>
{% if summary.calibration %}
{% set calibration = summary.calibration %}
<h2>Calibration</h2>
<p>{{ calibration.n }} rows state a confidence: {{ "%.3f"|format(calibration.mean_confidence) }} on average, right in
{{ "%.3f"|format(calibration.mean_outcome) }}. Expected calibration error {{ "%.3f"|format(calibration.ece) }}, Brier
score {{ "%.3f"|format(calibration.brier) }}, correlation with the score
{{ "%.3f"|format(calibration.correlation) }}.</p>
<svg id="reliability" viewBox="-34 -8 250 240" width="375" role="img"
 aria-label="stated confidence against share right">
<g font-size="9" fill="#5b6472">
{% for tick in (0, 0.25, 0.5, 0.75, 1) %}
<line x1="{{ tick * 200 }}" y1="0" x2="{{ tick * 200 }}" y2="200" stroke="#e6e9ed"/>
<line x1="0" y1="{{ tick * 200 }}" x2="200" y2="{{ tick * 200 }}" stroke="#e6e9ed"/>
<text x="{{ tick * 200 }}" y="212" text-anchor="middle">{{ tick }}</text>
<text x="-6" y="{{ 203 - tick * 200 }}" text-anchor="end">{{ tick }}</text>
{% endfor %}
<text x="100" y="226" text-anchor="middle">stated confidence</text>
<text transform="translate(-27 100) rotate(-90)" text-anchor="middle">share right</text>
</g>
<line x1="0" y1="200" x2="200" y2="0" stroke="#8a93a0" stroke-dasharray="4 3"/>
{% for bin in calibration.bins %}
<circle cx="{{ bin.confidence * 200 }}" cy="{{ 200 - bin.outcome * 200 }}"
 r="{{ 3 + 8 * (bin.n / calibration.n) ** 0.5 }}" fill="#2f6fdb" fill-opacity="0.7">
<title>{{ bin.n }} rows: stated {{ "%.2f"|format(bin.confidence) }}, right {{ "%.2f"|format(bin.outcome) }}</title>
</circle>
{% endfor %}
</svg>
{% endif %}
{% if task.truth == "boxes" %}
<p class="legend" style="margin-top: 30px"><span><i style="background: var(--true)"></i>true box</span>
<span><i style="background: var(--predicted)"></i>predicted box (dashed)</span></p>
{% endif %}
{% for title, cases in sections %}
{% if cases %}
<h2>{{ title }}</h2>
<div class="cases">
{% for case in cases %}
{% set record = case.record %}
<article class="case" id="row-{{ record.row }}" data-row="{{ record.row }}">
{% if case.problem %}<p class="muted">{{ case.problem }}</p>{% endif %}
<div class="pictures">
{% for picture in case.pictures %}
<figure{{ " class=tall" if picture.height > 1.3 * picture.width }}><div class="picture"
 style="aspect-ratio: {{ picture.width }} / {{ picture.height }}; max-width: {{ picture.shown_width }}px">
<img src="{{ picture.uri }}" width="{{ picture.width }}" height="{{ picture.height }}"
 alt="{{ picture.title }} of row {{ record.row }}">
{% if task.truth == "boxes" and (loop.first or picture.title.startswith("close-up")) %}
<svg viewBox="{{ picture.view|join(' ') }}" preserveAspectRatio="none">
{% for kind, boxes in (("true", case.true), ("predicted", case.predicted)) %}
{% for box in boxes %}
<rect class="box {{ kind }}" x="{{ box[0] }}" y="{{ box[1] }}"
 width="{{ box[2] - box[0] }}" height="{{ box[3] - box[1] }}"/>
{% endfor %}
{% endfor %}
</svg>
{% endif %}
</div>{% if not loop.first %}<figcaption>{{ picture.title }}</figcaption>{% endif %}</figure>
{% endfor %}
</div>
<p><b>{{ record.question }}</b></p>
<p class="score">{% for name in ([task.hit_component, task.metric] | unique) %}
{{ name }} {{ "%.3f"|format(record.components.get(name, 0)) }}&ensp;
{% endfor %}
reward {{ "%.3f"|format(record.reward) }}
{% if "confidence" in record.components %}
&ensp;stated confidence {{ "%.2f"|format(record.components.confidence) }}
{% endif %}</p>
{% if task.truth == "answers" %}
<p>answered <bdi><b>{{ record.reply|answer|truncate(200) or "nothing" }}</b></bdi>; people said
<bdi>{{ human(record.answers) }}</bdi></p>
{% elif not case.true %}
<p>there is nothing to find</p>
{% endif %}
<pre>{{ record.reply }}</pre>
<details><summary>row {{ record.row }}, id {{ record.id }}</summary>
<table>{% for name, value in record.components.items() %}
<tr><td>{{ name }}</td><td>{{ "%.4g"|format(value) }}</td></tr>
{% endfor %}</table></details>
</article>
{% endfor %}
</div>
{% endif %}
{% endfor %}
<h2>Requests and settings</h2>
<ul>{% for line in usage %}<li>{{ line }}</li>{% endfor %}</ul>
{% if summary.failures %}
<p>Failed rows:</p>
<ul>{% for text, count in summary.failures.items() %}<li>{{ count }} x {{ text }}</li>{% endfor %}</ul>
{% endif %}
<table>{% for name, value in summary.settings.items() %}
<tr><td>agent.{{ name }}</td><td>{{ value }}</td></tr>
{% endfor %}</table>
</body>
</html>
"""
