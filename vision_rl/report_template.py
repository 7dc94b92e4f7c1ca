"""The page of report.py, as a Jinja template (autoescaped: replies are text, whatever they hold)."""

from __future__ import annotations

TEMPLATE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{{ run.task }}: {{ name }}</title>
<style>
:root { --true: #0a8f3c; --predicted: #d6246e; --line: #d8dce2; --soft: #f5f6f8; --muted: #5b6472; --ink: #1b1f24;
  --alarm: #c0392b; }
* { box-sizing: border-box; }
body { font: 15px/1.5 system-ui, sans-serif; color: var(--ink); background: #fff; margin: 0 auto; max-width: 1240px;
  padding: 24px; }
h1 { font-size: 24px; margin: 0; overflow-wrap: anywhere; }
h2 { font-size: 18px; margin: 40px 0 12px; border-bottom: 1px solid var(--line); padding-bottom: 4px; }
h3 { font-size: 15px; margin: 22px 0 8px; }
.muted { color: var(--muted); }
.tiles { display: flex; flex-wrap: wrap; gap: 12px; margin: 18px 0; }
.tile { background: var(--soft); border-radius: 8px; padding: 12px 18px; min-width: 150px; }
.tile b { display: block; font-size: 24px; line-height: 1.25; }
.alarm { border-left: 4px solid var(--alarm); background: #fdf3f2; padding: 8px 14px; margin: 10px 0;
  border-radius: 0 6px 6px 0; }
.alarm ul { margin: 4px 0 0; padding-left: 20px; }
.charts { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(100%, 520px), 1fr)); gap: 14px; }
.charts img { width: 100%; height: auto; display: block; }
table { border-collapse: collapse; margin: 8px 0; }
th, td { text-align: right; padding: 4px 14px 4px 0; border-bottom: 1px solid var(--line); vertical-align: top; }
th { font-weight: 600; color: var(--muted); }
.left, th:first-child, td:first-child { text-align: left; overflow-wrap: anywhere; }
td { font-variant-numeric: tabular-nums; }
.wide { overflow-x: auto; }
.cards { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(100%, 360px), 1fr)); gap: 18px; align-items: start; }
.card { border: 1px solid var(--line); border-radius: 8px; padding: 14px; overflow-wrap: anywhere; min-width: 0; }
.card p { margin: 6px 0; }
.pictures { display: flex; flex-wrap: wrap; gap: 8px; }
.picture { position: relative; background: var(--soft); line-height: 0; flex: 0 1 auto; max-width: 100%; }
.picture img { display: block; max-width: 100%; height: auto; min-width: min(100%, 200px); image-rendering: auto; }
.picture.small img { image-rendering: pixelated; }
.picture svg { position: absolute; inset: 0; width: 100%; height: 100%; overflow: visible; }
.box { fill: none; stroke-width: 2.5; vector-effect: non-scaling-stroke; }
.box.true { stroke: var(--true); }
.box.predicted { stroke: var(--predicted); stroke-dasharray: 7 3; }
.mark { font: 700 12px system-ui, sans-serif; fill: var(--predicted); paint-order: stroke; stroke: #fff; stroke-width: 3px; }
.answer { border-top: 1px solid var(--line); padding: 8px 0 4px; }
.answer pre { background: var(--soft); border-radius: 6px; padding: 6px 8px; margin: 4px 0; white-space: pre-wrap;
  max-height: 170px; overflow: auto; font-size: 13px; overflow-wrap: anywhere; }
.head { display: flex; flex-wrap: wrap; gap: 4px 12px; align-items: baseline; font-size: 13px; }
.score { font-weight: 700; font-size: 15px; }
.bad { color: var(--alarm); }
.parts { font-size: 12px; color: var(--muted); }
.legend i { display: inline-block; width: 12px; height: 12px; border-radius: 3px; margin: 0 6px 0 14px; }
summary { cursor: pointer; color: var(--muted); }
pre.settings { background: var(--soft); padding: 10px; border-radius: 6px; overflow-x: auto; font-size: 12px; }
</style>
</head>
<body>
<h1>{{ run.task }}: {{ name }}</h1>
<div class="muted">{{ run.model }} &middot; {{ state }}</div>
<div class="tiles">
{% for label, value, note in tiles %}
<div class="tile">{{ label }}<b>{{ value }}</b><span class="muted">{{ note }}</span></div>
{% endfor %}
</div>

<h2>Alarms</h2>
{% for episode in alarms %}
<div class="alarm"><b>{{ episode.alarm.name }}</b> from step {{ episode.alarm.since }} to {{ episode.until }}
{%- if not episode.alarm.persistent %} (passed by){% endif %}: {{ episode.alarm.seen }}
<ul>{% for cure in episode.alarm.cures %}<li>{{ cure }}</li>{% endfor %}</ul></div>
{% else %}
<p class="muted">None: {{ watched }}</p>
{% endfor %}

<h2>Curves</h2>
<div class="charts">
{% for title, uri in charts %}
<img src="{{ uri }}" alt="{{ title }} over the steps">
{% else %}
<p class="muted">No step is finished yet.</p>
{% endfor %}
</div>

{% if components %}
<h2>Reward and its components</h2>
<div class="wide"><table>
<tr><th></th>{% for column in component_columns %}<th>{{ column }}</th>{% endfor %}</tr>
{% for label, values in components %}
<tr><td>{{ label }}</td>{% for value in values %}<td>{{ number(value) }}</td>{% endfor %}</tr>
{% endfor %}
</table></div>
{% endif %}

{% if phases %}
<h2>Time and throughput</h2>
<div class="wide"><table>
<tr><th></th><th>median of a step</th><th>share</th></tr>
{% for label, seconds, share in phases %}
<tr><td>{{ label }}</td><td>{{ "%.2f"|format(seconds) }} s</td><td>{{ "%.0f"|format(share * 100) }} %</td></tr>
{% endfor %}
</table></div>
{% endif %}

{% macro drawn(picture, boxes) %}
<div class="picture{% if picture.width < 240 %} small{% endif %}">
<img src="{{ picture.uri }}" width="{{ [picture.width, 300 if picture.width < 240 else 0]|max }}" alt="{{ picture.title }}">
{% if boxes %}
<svg viewBox="0 0 {{ picture.width }} {{ picture.height }}">
{% for kind, label, box in boxes %}
<rect class="box {{ kind }}" x="{{ box[0] * picture.width }}" y="{{ box[1] * picture.height }}"
 width="{{ [(box[2] - box[0]) * picture.width, 0]|max }}" height="{{ [(box[3] - box[1]) * picture.height, 0]|max }}"/>
{% if label %}
<text class="mark" x="{{ box[0] * picture.width }}" y="{{ box[1] * picture.height }}"
 style="font-size: {{ picture.width / 24 }}px; stroke-width: {{ picture.width / 120 }}px">{{ label }}</text>
{% endif %}
{% endfor %}
</svg>
{% endif %}
</div>
{% endmacro %}

{% macro card(one) %}
<article class="card" id="{{ one.id }}">
{% if one.problem %}<p class="bad">{{ one.problem }}</p>{% endif %}
<div class="pictures">
{% for picture in one.pictures %}
{{ drawn(picture, marks(one) if loop.first else []) }}
{% endfor %}
</div>
<p><b>{{ one.question }}</b></p>
<p class="muted">truth: {{ one.gold }}</p>
{% for answer in one.answers %}
<div class="answer">
<div class="head">{% if answer.when %}<b>{{ answer.when }}</b>{% else %}<b>{{ answer.number }}</b>{% endif %}
{% if answer.failure %}<span class="score bad">failed: {{ answer.failure }}</span>{% else %}
<span class="score">reward {{ number(answer.reward.reward) }}</span>{% endif %}
{% if answer.count > 1 %}<span>{{ answer.count }} times</span>{% endif %}
<span class="muted">{{ answer.tokens }} tokens</span>
{% if answer.cut %}<span class="bad">cut off</span>{% endif %}</div>
{% for turn in answer.turns %}
{% if turn.pictures %}
<div class="pictures">{% for picture in turn.pictures %}{{ drawn(picture, []) }}{% endfor %}</div>
{% endif %}
<pre>{{ turn.reply }}</pre>
{% endfor %}
<div class="parts">{{ parts(answer.reward) }}</div>
</div>
{% endfor %}
</article>
{% endmacro %}

{% if run.truth == "boxes" and sections %}
<p class="legend" style="margin-top: 34px"><i style="background: var(--true)"></i>true box
<i style="background: var(--predicted)"></i>predicted box (dashed, with the number of the answer)</p>
{% endif %}
{% for title, note, cards in sections %}
<h2>{{ title }}</h2>
<p class="muted">{{ note }}</p>
<div class="cards">
{% for one in cards %}
{{ card(one) }}
{% endfor %}
</div>
{% endfor %}

<h2>Failures</h2>
{% if failures or dropped %}
<div class="wide"><table>
<tr><th>reason</th><th>count</th><th>steps</th><th class="left">examples</th></tr>
{% for reason, failure in failures.items() %}
<tr><td>{{ reason }}</td><td>{{ failure.count }}</td><td>{{ failure.first }} to {{ failure.last }}</td>
<td class="left">{% for example in failure.examples %}<div>{{ example }}</div>{% endfor %}</td></tr>
{% endfor %}
{% for reason, count in dropped.items() %}
<tr><td>sample dropped: {{ reason }}</td><td>{{ count }}</td><td></td><td class="left"></td></tr>
{% endfor %}
</table></div>
{% else %}
<p class="muted">No rollout failed and no sample was dropped.</p>
{% endif %}

{% if events %}
<h2>What happened</h2>
<div class="wide"><table>
{% for when, text in events %}
<tr><td>{{ when }}</td><td class="left">{{ text }}</td></tr>
{% endfor %}
</table></div>
{% endif %}

<h2>Settings</h2>
<details><summary>{{ settings|length }} settings that are not defaults</summary>
<pre class="settings">{% for setting, origin in settings.items() %}
{{ setting }}    # {{ origin }}
{% endfor %}</pre></details>
</body>
</html>
"""
