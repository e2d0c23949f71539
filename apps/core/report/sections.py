"""The sections of the page, each empty where its files are missing."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from html import escape
from itertools import groupby
from typing import Any

from apps.core.metrics.direction import is_better
from apps.core.report.curves import charts
from apps.core.report.embed import Budget, gallery
from apps.core.report.markup import code, fold, pairs, section, table
from apps.core.report.numbers import comparison, number, published
from apps.core.report.read import RunFiles

TITLES = {
    "summary": "Summary",
    "best": "Best samples",
    "worst": "Worst samples",
    "random": "Random samples",
    "pictures": "Pictures",
}
_WARNING_WORDS = ("skip", "warn", "corrupt")
_KNOWN_NOTES = ("tables", "timing")


def lead(run: RunFiles) -> str:
    """One sentence: the first metric, against baseline and published value."""
    if not run.results:
        return ""
    row = run.results[0]
    metric, value, baseline = (row.get(key) for key in ("metric", "value", "baseline"))
    text = f"{escape(str(metric))} <b>{number(value)}</b>"
    if isinstance(row.get("samples"), int):
        text += f" on {number(row['samples'])} samples"
    verdict = comparison(str(metric), value, baseline)
    if verdict:
        than = "to" if verdict == "equal" else "than"
        text += f", {verdict} {than} the trivial baseline ({number(baseline)})"
    if row.get("published") is not None:
        text += f"; published: {published(row['published'])}"
    return f'<p class="lead">{text}.</p>'


def results(run: RunFiles) -> str:
    """The headline table: ours beside the trivial baseline and the published value."""
    if not run.results:
        return ""
    shown = [name for name in ("baseline", "published") if any(row.get(name) is not None for row in run.results)]
    if len({row.get("samples") for row in run.results}) > 1:  # one count for all stands in the lead sentence
        shown.append("samples")
    head = "".join(f"<th>{name}</th>" for name in ("metric", "ours", *shown))
    rows = "".join(_result(row, shown) for row in run.results)
    return section("results", "Results", f'<div class="scroll results"><table><tr>{head}</tr>{rows}</table></div>')


def _result(row: Mapping[str, Any], shown: list[str]) -> str:
    cells = [f"<td>{escape(str(row['metric']))}</td>", f'<td class="ours">{number(row.get("value"))}</td>']
    cells += [_other(row, name) for name in shown]
    return f"<tr>{''.join(cells)}</tr>"


def _other(row: Mapping[str, Any], name: str) -> str:
    value = row.get(name)
    verdict = "" if name == "samples" else comparison(str(row["metric"]), row.get("value"), value)
    text = published(value) if name == "published" else number(value)
    if not verdict:
        return f"<td>{text}</td>"
    better = is_better(str(row["metric"]), row.get("value"), value)
    kind = "" if better is None else ' class="good"' if better else ' class="bad"'
    return f"<td>{text}<small{kind}>{verdict}</small></td>"


def curves(run: RunFiles) -> str:
    """Loss, metrics and learning rate over the steps of the run."""
    drawn = charts(run.curves)
    if not drawn:
        return ""
    first, more = drawn[:8], drawn[8:]
    body = f'<div class="charts">{"".join(first)}</div>'
    if more:
        body += fold(f"{len(more)} more curves", f'<div class="charts">{"".join(more)}</div>')
    return section("curves", "Curves", body)


def media(run: RunFiles, budget: Budget) -> list[str]:
    """One section for each kind of picture."""
    grouped = groupby(run.media, key=lambda medium: medium.section)
    return [
        section(name, TITLES.get(name, name.replace("_", " ").capitalize()), gallery(list(group), budget))
        for name, group in grouped
    ]


def tables(run: RunFiles) -> str:
    """Further tables: per class, per horizon step."""
    found = run.notes.get("tables")
    if not isinstance(found, Mapping):
        return ""
    parts = []
    for name, rows in found.items():
        body = table([row for row in rows if isinstance(row, Mapping)]) if isinstance(rows, list) else ""
        if body and len(rows) > 12:
            parts.append(fold(f"{str(name).replace('_', ' ')} ({len(rows)} rows)", body))
        elif body:
            parts.append(f"<h3>{escape(str(name).replace('_', ' '))}</h3>{body}")
    return section("tables", "Tables", "".join(parts))


def warnings(run: RunFiles) -> str:
    """Skipped files and other warnings, above everything else."""
    parts = [
        _warning(key, value)
        for key, value in run.notes.items()
        if value and any(word in key.lower() for word in _WARNING_WORDS)
    ]
    return f'<div class="note">{"".join(parts)}</div>' if parts else ""


def _warning(key: str, value: Any) -> str:
    title = key.replace("_", " ")
    if isinstance(value, Mapping):
        return fold(f"{title} ({len(value)})", pairs(value))
    if isinstance(value, list) and len(value) > 1:
        lines = [str(item) for item in value]
        rest = f"\n... and {len(lines) - 200} more" if len(lines) > 200 else ""
        return fold(f"{title} ({len(lines)})", code("\n".join(lines[:200]) + rest))
    return f"<p><b>{escape(title)}:</b> {escape(str(value[0] if isinstance(value, list) else value))}</p>"


def timing(run: RunFiles) -> str:
    """How long the parts took."""
    found = run.notes.get("timing")
    return section("timing", "Timing", pairs(found)) if isinstance(found, Mapping) else ""


def reproduce(run: RunFiles) -> str:
    """The command that was typed, the configuration and the environment."""
    rest = {
        key: value
        for key, value in run.notes.items()
        if key not in _KNOWN_NOTES and not any(word in key.lower() for word in _WARNING_WORDS)
    }
    diff = str(run.provenance.get("diff") or "")
    environment = {key: value for key, value in run.provenance.items() if key not in ("argv", "command", "diff")}
    body = [
        code(command(run), "command"),
        fold("Configuration", code(run.config)),
        fold("Environment", pairs(environment)),
        fold("Uncommitted changes", code(diff[:200_000])),
        fold("Notes", pairs(rest)),
    ]
    return section("reproduce", "Reproduce", "".join(body))


def command(run: RunFiles) -> str:
    """The shell command of the run, and the one that repeats it from its configuration alone; empty if unknown."""
    argv, task = run.provenance.get("argv"), run.provenance.get("task")
    if not task or not isinstance(argv, list) or not argv:
        return str(run.provenance.get("command") or "")
    start = ["python", "-m", f"apps.{task}"]
    lines = [shlex.join([*start, *map(str, argv)])]
    if argv[0] == "fit" and run.config:
        kept = shlex.join([*start, "fit", "--config", str(run.path / "config.yaml")])
        lines += ["", "# or, from the configuration kept here alone:", kept]
    return "\n".join(lines)
