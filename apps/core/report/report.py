"""The report page: one file that needs no network."""

from __future__ import annotations

import re
from html import escape
from pathlib import Path
from typing import Any

from apps.core.report import sections
from apps.core.report.embed import Budget
from apps.core.report.read import RunFiles, read_run
from apps.core.report.style import STYLE


def write_report(folder: Any) -> Path:
    """Write ``report.html`` from whatever files the run folder has.

    Args:
        folder: A ``RunFolder``, or the path of one.

    Returns:
        Path of the page.
    """
    path = Path(getattr(folder, "path", folder))
    target = path / "report.html"
    unfinished = path / "report.html.tmp"
    unfinished.write_text(page(read_run(path)), encoding="utf-8")
    unfinished.replace(target)  # a reader never sees half a page
    return target


def page(run: RunFiles) -> str:
    """The whole page."""
    over, title = names(run)
    body = [
        sections.results(run),
        sections.curves(run),
        *sections.media(run, Budget()),
        sections.tables(run),
        sections.timing(run),
        sections.reproduce(run),
    ]
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(title)}</title><style>{STYLE}</style></head><body>"
        f'<header><p class="over">{escape(over)}</p><h1>{escape(title)}</h1>{sections.lead(run)}{_nav(body)}</header>'
        f"{sections.warnings(run)}{''.join(body) or '<p>This run has left nothing to show yet.</p>'}"
        f"<footer>{_footer(run)}</footer></body></html>\n"
    )


def names(run: RunFiles) -> tuple[str, str]:
    """Task and stamp for the line above the title, and the title; from provenance, else from the folder's path."""
    parts = [part for part in run.path.resolve().parts[-3:] if part != "/"]
    in_runs = len(parts) == 3 and re.fullmatch(r"\d{4,}.*", parts[2]) is not None
    task = str(run.provenance.get("task") or (parts[0] if in_runs else ""))
    title = str(run.provenance.get("name") or (parts[1] if in_runs else parts[-1]))
    stamp = str(run.provenance.get("started") or run.provenance.get("time") or (parts[2] if in_runs else ""))
    stamp = re.sub(r"^(\d{4}-\d\d-\d\d)[T ](\d\d:\d\d).*", r"\1 \2", stamp)
    return " · ".join(part for part in (task, stamp) if part), title


def _nav(body: list[str]) -> str:
    links = re.findall(r'<h2 id="([^"]*)">(.*?)</h2>', "".join(body))
    return f"<nav>{''.join(f'<a href=#{anchor}>{title}</a>' for anchor, title in links)}</nav>" if links else ""


def _footer(run: RunFiles) -> str:
    epochs = f"{run.epochs} epoch{'s' if run.epochs != 1 else ''} · " if run.epochs else ""
    return f"{epochs}{escape(str(run.path))} · written by Graftwork"
