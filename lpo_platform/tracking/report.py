"""The report of a run: one HTML page that needs nothing but itself, made from the files of the run folder alone.

Every text that comes from the run is escaped. Without JavaScript only the hover values of the curves are missing.
"""

import base64
import html
import io
import json
import math
import shlex
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from string import Template
from typing import Any

import numpy as np
import yaml
from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.core.singleton import Singleton
from omegaconf import OmegaConf, open_dict
from omegaconf.errors import OmegaConfBaseException
from PIL import Image, UnidentifiedImageError

from lpo_platform import record
from lpo_platform.config import CONF  # importing it registers the schema that conf/train.yaml names
from lpo_platform.evaluation.statistics import decimals, number, verdict, win_rate

TEMPLATE = Path(__file__).with_name("report_template.html")
COLUMNS = {
    "condition": "condition",
    "before": "base",
    "after": "trained",
    "detected_before": "re-detected in base",
    "detected_after": "re-detected in trained",
}
TINY_SIDE, LARGEST_SIDE = 160, 384
SHOWN_AT_ONCE = 6
CHART = {"left": 46, "top": 10, "width": 262, "height": 116}
MOST_POINTS = 400
MOST_CHANGES = 12

escape = html.escape


@dataclass
class Run:
    """What a run folder holds; whatever is missing or unreadable is empty."""

    folder: Path
    config: dict[str, Any] = field(default_factory=dict)
    environment: dict[str, Any] = field(default_factory=dict)
    result: dict[str, Any] = field(default_factory=dict)
    choices: dict[str, str] = field(default_factory=dict)
    config_name: str = "train"
    rows: list[dict[str, Any]] = field(default_factory=list)
    items: list[dict[str, Any]] = field(default_factory=list)

    @classmethod
    def read(cls, folder: Path) -> "Run":
        hydra = _yaml(folder / ".hydra" / "hydra.yaml", resolve=False).get("hydra", {})
        choices = (hydra.get("runtime") or {}).get("choices") or {}
        return cls(
            folder,
            config=record.redact_config(_yaml(folder / "resolved.yaml", resolve=True)),
            environment=_mapping(record.read_json(folder / "env.json")),
            result=_mapping(record.read_json(folder / "result.json")),
            config_name=str((hydra.get("job") or {}).get("config_name") or "train"),
            choices={k: v for k, v in choices.items() if not k.startswith("hydra/") and v is not None},
            rows=record.read_lines(folder / "metrics.jsonl"),
            items=record.read_lines(folder / "evaluation" / "items.jsonl"),
        )

    @cached_property
    def metrics(self) -> dict[str, dict[str, Any]]:
        found = _mapping(self.result.get("metrics"))
        return {name: m for name, m in found.items() if isinstance(m, dict) and set(m) >= record.METRIC_KEYS}

    def option(self, group: str) -> str | None:
        """The option of a group: as hydra recorded it, else the module of its target, else none."""
        if group in self.choices:
            return str(self.choices[group])
        target = _mapping(self.config.get(group)).get("_target_")
        return str(target).split(".")[-2] if target and "." in str(target) else None

    def series(self) -> dict[str, list[tuple[int, float]]]:
        """Per name the (step, value) that were logged, in the order in which the names appeared."""
        found: dict[str, list[tuple[int, float]]] = {}
        for row in self.rows:
            for name, value in row.items():
                if name not in {"step", "time", "epoch"} and isinstance(value, int | float):
                    found.setdefault(name, []).append((row.get("step", 0), float(value)))
        return {name: sorted(points, key=lambda point: point[0]) for name, points in found.items()}


def write_report(folder: str | Path) -> Path:
    """Writes report.html into a run folder from what lies there, and returns its path."""
    run = Run.read(Path(folder))
    page = Template(TEMPLATE.read_text(encoding="utf-8")).substitute(
        title=escape(title(run)),
        subtitle=escape(subtitle(run)),
        verdict=escape(sentence(run)),
        results=_results(run),
        samples=_samples(run),
        curves=_curves(run),
        run=_what_was_run(run),
        time=_time(run),
        environment=_environment(run),
        footer=escape(f"lpo-platform {_mapping(run.environment.get('versions')).get('lpo-platform', '')}".strip()),
    )
    path = run.folder / "report.html"
    record.write_text(path, page)
    return path


def title(run: Run) -> str:
    """Method, task and model in words, or the folder's name."""
    method, model, task = (run.option(group) for group in ("method", "model", "task"))
    if run.config.get("run"):
        return f"Evaluation of {run.config['run']}"
    if method is None:
        return run.folder.resolve().name or "run"
    words = [method.upper() if len(method) <= 4 else method.replace("_", " ")]
    words += ["on", task] if task not in (None, "none") else []
    return " ".join([*words, f"with model {model}"] if model else words)


def subtitle(run: Run) -> str:
    resolved = run.folder.resolve()
    parts = [f"{resolved.parent.name}/{resolved.name}", f"status: {run.result.get('status', 'unknown')}"]
    if run.result.get("seed") is not None:
        parts.append(f"seed {run.result['seed']}")
    if run.result.get("seconds"):
        parts.append(duration(run.result["seconds"]))
    return " \u00b7 ".join(parts)


def sentence(run: Run) -> str:
    """What was optimised, whether it rose, and whether the other metrics held, in plain words."""
    status = run.result.get("status")
    if status == "failed":
        return f"This run failed: {run.result.get('reason') or 'no reason was recorded'}"
    if not run.metrics:
        return "This run has no result yet." if status == "running" else "This run recorded no before and after."
    main, guards = split_metrics(run.metrics, run.option("task"))
    count = run.result.get("samples")
    where = f" on {count} held-out items" if count else ""
    return f"{_change(main, run.metrics[main], run.option('method'))}{where}. {_guards(run.metrics, guards)}"


def split_metrics(metrics: Mapping[str, Any], task: str | None) -> tuple[str, list[str]]:
    """The metric that was optimised (the task's first, else the first of all) and the guards: all others."""
    main = next((name for name in metrics if name.split("/")[0] == task), next(iter(metrics)))
    return main, [name for name in metrics if name != main]


def duration(seconds: float) -> str:
    """Seconds as words: 9.3 s, 2 min 05 s, 3 h 12 min."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest:02d} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60:02d} min"


def compose_defaults(choices: Mapping[str, str], config_name: str = "train") -> dict[str, Any] | None:
    """What a root config composes to with these options and nothing else; None if it does not compose here."""
    overrides = [f"{g}={o}" for g, o in choices.items() if g not in {"experiment", "sweep", "debug", "local"}]
    for attempt in (overrides, []):
        try:
            return _compose(config_name, attempt)
        except Exception:  # a report must not fail because a configuration has moved on
            continue
    return None


def _compose(config_name: str, overrides: list[str]) -> dict[str, Any]:
    state = Singleton.get_state()
    GlobalHydra.instance().clear()
    try:
        with initialize_config_dir(str(CONF), version_base="1.3"):
            cfg = compose(config_name, overrides=overrides)
        with open_dict(cfg):
            cfg.pop("hydra", None)
        return OmegaConf.to_container(cfg, resolve=True, throw_on_missing=False)
    finally:
        Singleton.set_state(state)


# page sections


def _results(run: Run) -> str:
    if not run.metrics:
        return _absent("result.json holds no metrics.")
    head = "<th>metric</th><th class=number>before</th><th class=number>after</th><th class=number>difference</th>"
    head += "<th>95\u00a0% interval</th><th></th><th></th><th class=number>items better</th>"
    body = "".join(_metric_row(run, name, metric) for name, metric in run.metrics.items())
    count = run.result.get("samples")
    note = "Same held-out conditions, prompts and noise before and after"
    note += f" ({count} items)" if count else ""
    note += ". The interval is a paired bootstrap of the difference; \u201cunclear\u201d means that it contains 0."
    table = f"<table class=metrics><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"
    return f"<div class=scroll>{table}</div><p class=note>{note}</p>"


def _metric_row(run: Run, name: str, metric: Mapping[str, Any]) -> str:
    digits, word = decimals(metric), verdict(metric)
    low, high = metric["ci95"]
    better = metric["higher_is_better"]
    direction = "should stay" if better is None else "higher is better" if better else "lower is better"
    interval = f"[{number(low, digits, sign=True)}, {number(high, digits, sign=True)}]"
    cells = [
        f"<td class=name>{escape(name)}<br><span class=note>{direction}</span></td>",
        f'<td class=number data-label="before">{number(metric["before"], digits)}</td>',
        f'<td class=number data-label="after">{number(metric["after"], digits)}</td>',
        f'<td class=number data-label="difference">{number(metric["difference"], digits, sign=True)}</td>',
        f'<td class=number style="text-align:left">{interval}</td>',
        f"<td>{_interval_picture(metric, word)}</td>",
        f'<td><span class="tag {word}">{word}</span></td>',
        f'<td class="number wide" data-label="items better">{_wins(run, name, metric)}</td>',
    ]
    return f"<tr>{''.join(cells)}</tr>"


def _interval_picture(metric: Mapping[str, Any], word: str) -> str:
    """The interval as a bar against a line at 0, on a scale of its own."""
    values = [metric["ci95"][0], metric["difference"], metric["ci95"][1]]
    if any(value is None or not math.isfinite(value) for value in values):
        return ""
    reach = max(map(abs, values)) * 1.08 or 1.0
    low, middle, high = (75 + 72 * value / reach for value in values)
    shape = '<line x1="75" x2="75" y1="1" y2="21" class="grid" style="stroke:currentColor;opacity:.45"/>'
    shape += f'<line x1="{low:.1f}" x2="{high:.1f}" y1="11" y2="11" stroke="var(--{word})" stroke-width="3"/>'
    shape += f'<circle cx="{middle:.1f}" cy="11" r="4.5" fill="var(--{word})"/>'
    label = f"interval of the difference against 0: {word}"
    return f'<svg class="interval" viewBox="0 0 150 22" role="img" aria-label="{label}">{shape}</svg>'


def _wins(run: Run, name: str, metric: Mapping[str, Any]) -> str:
    pairs = [(item.get(f"{name}/before"), item.get(f"{name}/after")) for item in run.items]
    pairs = [pair for pair in pairs if all(isinstance(value, int | float) for value in pair)]
    if not pairs or metric["higher_is_better"] is None:
        return ""
    before, after = np.array(pairs, dtype=np.float64).T
    return f"{100 * win_rate(before, after, higher_is_better=metric['higher_is_better']):.0f} %"


def _samples(run: Run) -> str:
    folder = run.folder / "samples"
    columns = {name: words for name, words in COLUMNS.items() if any((folder / name).glob("*.png"))}
    if not columns:
        return _absent("samples/ holds no pictures.")
    names = sorted({p.stem for name in columns for p in (folder / name).glob("*.png")}, key=_natural)
    strips = [_strip(run, name, columns) for name in names]
    heads = "".join(f"<span>{words}</span>" for words in columns.values())
    style = f'style="--columns:{len(columns)}"'
    head = f"<div class='strip head'><div class=blank></div><div class=heads {style}>{heads}</div></div>"
    shown = f"<div class=strips {style}>{head}{''.join(strips[:SHOWN_AT_ONCE])}</div>"
    if rest := strips[SHOWN_AT_ONCE:]:
        shown += f"<details><summary>{len(rest)} more</summary>"
        shown += f"<div class=strips {style}>{head}{''.join(rest)}</div></details>"
    return f"<p class=note>{escape(_columns_note(columns))}</p>{shown}"


def _columns_note(columns: Mapping[str, str]) -> str:
    note = "The first held-out items, not a selection. Base and trained start from the same noise."
    if "detected_after" in columns:
        note += " What the detector finds in an output should equal the condition."
    return note


def _strip(run: Run, name: str, columns: Mapping[str, str]) -> str:
    item = run.items[int(name)] if name.isdigit() and int(name) < len(run.items) else {}
    caption = str(item.get("caption", "") or "")
    scores = []
    for metric in run.metrics:
        pair = [item.get(f"{metric}/{side}") for side in ("before", "after")]
        if all(isinstance(value, int | float) for value in pair):
            scores.append(f"{metric} {pair[0]:.3f} \u2192 {pair[1]:.3f}")
    text = escape(caption) if caption else f"<span class=note>item {escape(name)}, no caption</span>"
    text += "".join(f"<span class=meta>{escape(score)}</span>" for score in scores)
    pictures = "".join(
        _picture(run.folder / "samples" / column / f"{name}.png", f"{words}: {caption}")
        for column, words in columns.items()
    )
    return f"<div class=strip><div class=caption>{text}</div><div class=pictures>{pictures}</div></div>"


def _picture(path: Path, alternative: str) -> str:
    """An <img> with the picture inside; large ones are scaled down, tiny ones are drawn with hard pixels."""
    try:
        data = path.read_bytes()
        with Image.open(io.BytesIO(data)) as image:
            image.load()
            side, kind = max(image.size), "png"
            if side > LARGEST_SIDE:
                image.thumbnail((LARGEST_SIDE, LARGEST_SIDE), Image.Resampling.LANCZOS)
                buffer = io.BytesIO()
                image.convert("RGB").save(buffer, "WEBP", quality=90)
                data, kind = buffer.getvalue(), "webp"
    except FileNotFoundError:
        return "<span class=hole>missing</span>"
    except (OSError, UnidentifiedImageError, ValueError, SyntaxError):
        return "<span class=hole>unreadable</span>"
    source = f"data:image/{kind};base64,{base64.b64encode(data).decode()}"
    crisp = " class=tiny" if side <= TINY_SIDE else ""
    return f'<img{crisp} src="{source}" alt="{escape(alternative)}" title="{escape(alternative)}">'


def _curves(run: Run) -> str:
    series = {name: points for name, points in run.series().items() if not name.startswith("perf/")}
    if not series:
        return _absent("metrics.jsonl holds nothing to draw.")
    steps = max(points[-1][0] for points in series.values()) + 1
    groups: dict[str, list[str]] = {}
    for name in sorted(series, key=lambda name: (not name.startswith("train/"), name != "train/loss")):
        if len(series[name]) > 1:
            groups.setdefault(name.split("/")[0], []).append(_chart(name, series[name]))
    text = f"<p class=note>{steps} optimiser steps. Faint: as logged. Strong: moving average.</p>"
    text += "".join(f"<h3>{escape(g)}</h3><div class=charts>{''.join(charts)}</div>" for g, charts in groups.items())
    single = [(name, _short(points[0][1])) for name, points in series.items() if len(points) == 1]
    return text + (_pairs(single) if single else "")


def _chart(name: str, points: list[tuple[int, float]]) -> str:
    smooth = smoothed([value for _, value in points])
    x = [step for step, _ in points]
    x0, x1 = x[0], max(x[-1], x[0] + 1)
    y_ticks = ticks(*_value_range([value for _, value in points], smooth))
    y0, y1 = y_ticks[0], y_ticks[-1]

    def place(step: float, value: float) -> str:
        across = CHART["left"] + CHART["width"] * (step - x0) / (x1 - x0)
        down = CHART["top"] + CHART["height"] * (1 - (min(max(value, y0), y1) - y0) / (y1 - y0))
        return f"{across:.1f},{down:.1f}"

    raw, strong = thinned(points), thinned(list(zip(x, smooth, strict=True)))
    lines = "".join(_axes(x0, x1, y_ticks))
    lines += f'<polyline class="raw" points="{" ".join(place(*p) for p in raw)}"/>'
    lines += f'<polyline class="smooth" points="{" ".join(place(*p) for p in strong)}"/>'
    bottom = CHART["top"] + CHART["height"]
    lines += f'<line class="cross" x1="0" x2="0" y1="{CHART["top"]}" y2="{bottom}"/>'
    box = json.dumps({"left": CHART["left"], "width": CHART["width"], "x0": x0, "x1": x1})
    data = json.dumps([[step, float(f"{value:.6g}")] for step, value in raw])
    last = f"last {_short(smooth[-1])}"
    svg = f'<svg viewBox="0 0 320 150" role="img" aria-label="{escape(name)} over steps, {last}">{lines}</svg>'
    heading = f"<div class=name><span>{escape(name)}</span><output>{last}</output></div>"
    return f'<figure class=chart data-box="{escape(box)}" data-points="{escape(data)}">{heading}{svg}</figure>'


def _axes(x0: float, x1: float, y_ticks: Sequence[float]) -> Iterator[str]:
    left, right, bottom = CHART["left"], CHART["left"] + CHART["width"], CHART["top"] + CHART["height"]
    for value in y_ticks:
        y = bottom - CHART["height"] * (value - y_ticks[0]) / (y_ticks[-1] - y_ticks[0])
        yield f'<line class="grid" x1="{left}" x2="{right}" y1="{y:.1f}" y2="{y:.1f}"/>'
        yield f'<text x="{left - 6}" y="{y + 4:.1f}" text-anchor="end">{_tick(value)}</text>'
    for value in [tick for tick in ticks(x0, x1) if x0 <= tick <= x1 and tick == round(tick)]:
        x = left + CHART["width"] * (value - x0) / (x1 - x0)
        yield f'<text x="{x:.1f}" y="{bottom + 16}" text-anchor="middle">{value:,.0f}</text>'


def smoothed(values: Sequence[float]) -> list[float]:
    """Centred moving average over about a twelfth of the series, so that it does not lag; one-sided at the ends."""
    reach, count = len(values) // 24, len(values)
    total = np.concatenate([[0.0], np.cumsum(np.asarray(values, dtype=np.float64))])
    low = np.maximum(np.arange(count) - reach, 0)
    high = np.minimum(np.arange(count) + reach + 1, count)
    return ((total[high] - total[low]) / (high - low)).tolist()


def thinned(points: list[tuple[int, float]], most: int = MOST_POINTS) -> list[tuple[int, float]]:
    """At most about `most` points that keep the extremes: the lowest and highest of each stretch."""
    if len(points) <= most:
        return points
    size = math.ceil(2 * len(points) / most)
    kept: set[int] = {0, len(points) - 1}
    for start in range(0, len(points), size):
        stretch = range(start, min(start + size, len(points)))
        kept |= {min(stretch, key=lambda i: points[i][1]), max(stretch, key=lambda i: points[i][1])}
    return [points[i] for i in sorted(kept)]


def ticks(low: float, high: float, count: int = 4) -> list[float]:
    """Round numbers, about `count` of them, the first at or below `low` and the last at or above `high`."""
    if not high > low:
        low, high = low - (abs(low) * 0.1 or 0.5), high + (abs(high) * 0.1 or 0.5)
    rough = (high - low) / count
    power = 10.0 ** math.floor(math.log10(rough))
    step = power * next(f for f in (1, 2, 2.5, 5, 10) if f * power >= rough * 0.999)
    return [step * k for k in range(math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9) + 1)]


def _value_range(values: Sequence[float], smooth: Sequence[float]) -> tuple[float, float]:
    """What the axis must show: the average in full, the raw values but for the outermost hundredth."""
    cut = 1.0 if len(values) >= 50 else 0.0
    low, high = np.percentile(values, [cut, 100 - cut])
    return min(float(low), min(smooth)), max(float(high), max(smooth))


def _what_was_run(run: Run) -> str:
    command = run.result.get("command") or run.environment.get("command")
    parts = []
    if command:
        words = [Path(str(command[0])).name, *map(str, command[1:])]
        parts.append(f"<pre class=command>{escape(shlex.join(words))}</pre>")
    else:
        parts.append(_absent("No command is on record."))
    if not run.config:
        return "".join([*parts, _absent("resolved.yaml is missing.")])
    if run.choices:
        parts.append(f"<p>Options: {_choices(run.choices)}</p>")
    parts.append(_difference_table(run))
    text = yaml.safe_dump(run.config, sort_keys=False, allow_unicode=True, width=100)
    parts.append(f"<details><summary>Full configuration</summary><pre>{escape(text)}</pre></details>")
    return "".join(parts)


def _choices(choices: Mapping[str, str]) -> str:
    return " ".join(f"<code>{escape(str(group))}={escape(str(option))}</code>" for group, option in choices.items())


def _difference_table(run: Run) -> str:
    defaults = compose_defaults(run.choices, run.config_name)
    if defaults is None:
        return _absent("The defaults could not be composed here, so the difference to them is not shown.")
    rows = record.difference(run.config, record.redact_config(defaults))
    if not rows:
        return "<p>Every value is the default of these options.</p>"
    body = "".join(
        f"<tr><td class='path mono'>{escape(path)}</td><td class='path mono old'>{escape(_value(default))}</td>"
        f"<td class='path mono'>{escape(_value(value))}</td></tr>"
        for path, default, value in rows
    )
    head = "<tr><th>setting</th><th>default</th><th>this run</th></tr>"
    table = f"<div class=scroll><table class=small><thead>{head}</thead><tbody>{body}</tbody></table></div>"
    words = f"Differs from the defaults of these options in {len(rows)} value{'s' if len(rows) > 1 else ''}"
    if len(rows) > MOST_CHANGES:
        return f"<details><summary>{words}</summary>{table}</details>"
    return f"<p>{words}:</p>{table}"


def _time(run: Run) -> str:
    resumed = run.environment.get("resumed")
    whole = "since it was last resumed" if resumed else "whole run"
    rows = [(whole, duration(run.result["seconds"]))] if run.result.get("seconds") else []
    for name, points in run.series().items():
        if name.startswith("perf/"):
            values = [value for _, value in points]
            words = name.removeprefix("perf/").replace("_", " ")
            if "seconds" in name:
                rows.append(
                    (
                        words.replace(" seconds", ""),
                        f"{duration(sum(values))} ({len(values)} x {_short(np.mean(values))} s)",
                    )
                )
            else:
                rows.append((words, f"{_short(np.mean(values))} on average"))
    return _pairs(rows) if rows else _absent("No times are on record.")


def _environment(run: Run) -> str:
    if not run.environment:
        return _absent("env.json is missing.")
    machine, git = _mapping(run.environment.get("machine")), run.environment.get("git")
    rows = [(name, str(value)) for name, value in _mapping(run.environment.get("versions")).items()]
    if isinstance(git, dict):
        dirty = " with uncommitted changes" if git.get("dirty") else ""
        rows.append(("commit", f"{git.get('commit') or 'none yet'}{dirty}"))
    for name, value in machine.items():
        words = ", ".join(map(str, value)) or "none" if isinstance(value, list) else str(value)
        rows.append((name.replace("_gib", ", GiB"), words))
    return _pairs(rows)


def _change(name: str, metric: Mapping[str, Any], method: str | None) -> str:
    digits, word = decimals(metric), verdict(metric)
    low, high = metric["ci95"]
    numbers = f"{number(metric['difference'], digits, sign=True)}, 95\u00a0% interval "
    numbers += f"{number(low, digits, sign=True)} to {number(high, digits, sign=True)}"
    before, after = number(metric["before"], digits), number(metric["after"], digits)
    who = "The run" if method is None else method.upper() if len(method) <= 4 else f"The method {method}"
    if word == "unclear":
        return f"{who} did not clearly change {name}: {before} before, {after} after ({numbers})"
    verb = "raised" if metric["difference"] > 0 else "lowered"
    wrong = ", which is worse," if word == "worse" else ""
    return f"{who} {verb} {name}{wrong} from {before} to {after} ({numbers})"


def _guards(metrics: Mapping[str, Mapping[str, Any]], guards: Sequence[str]) -> str:
    if not guards:
        return "No guard metric was measured."
    by_verdict: dict[str, list[str]] = {}
    for name in guards:
        moved = number(metrics[name]["difference"], decimals(metrics[name]), sign=True)
        by_verdict.setdefault(verdict(metrics[name]), []).append(f"{name} {moved}")
    say = lambda word: ", ".join(by_verdict[word])  # noqa: E731
    said = []
    if "worse" in by_verdict:
        said.append(f"Elsewhere it cost something: {say('worse')}.")
    if "changed" in by_verdict:
        said.append(f"What should rather stay changed: {say('changed')}.")
    if "better" in by_verdict:
        said.append(f"Better as well: {say('better')}.")
    if "unclear" in by_verdict:
        said.append(f"Not clearly changed: {say('unclear')}.")
    return " ".join(said)


def _absent(words: str) -> str:
    return f"<p class=absent>{escape(words)}</p>"


def _pairs(rows: Sequence[tuple[str, str]]) -> str:
    body = "".join(
        f"<tr><td class=old>{escape(name)}</td><td class=path>{escape(value)}</td></tr>" for name, value in rows
    )
    return f"<div class=scroll><table class=small><tbody>{body}</tbody></table></div>"


def _value(value: Any) -> str:
    if value is record.MISSING:
        return "(absent)"
    return (
        yaml.safe_dump(value, default_flow_style=True, allow_unicode=True, width=10_000).removesuffix("...\n").strip()
    )


def _short(value: float) -> str:
    return f"{value:.4g}"


def _tick(value: float) -> str:
    return "0" if value == 0 else f"{value:.3g}".replace("e-0", "e-").replace("e+0", "e")


def _natural(name: str) -> tuple[int, str]:
    return (int(name), "") if name.isdigit() else (10**9, name)


def _mapping(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def _yaml(path: Path, *, resolve: bool) -> dict[str, Any]:
    try:
        return _mapping(OmegaConf.to_container(OmegaConf.load(path), resolve=resolve))
    except (OSError, ValueError, yaml.YAMLError, OmegaConfBaseException):
        return {}
