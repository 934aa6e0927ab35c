"""The report as one HTML file that needs nothing but a browser: no network, no script to be readable."""

from __future__ import annotations

import base64
import contextlib
import hashlib
import os
import tempfile
from functools import cache
from importlib import resources
from pathlib import Path

import jinja2
from markupsafe import Markup

from pipeline.report.data import ReportData, ReportError
from pipeline.report.gallery import class_keys, feature_blocks, gallery
from pipeline.report.pr import pr_chart
from pipeline.report.quantities import bytes_text, seconds_text
from pipeline.report.results import cards, gain_charts, headline, result_table
from pipeline.report.sections import curve_stages, router_tables, store_lines, time_chart

__all__ = ["page_template", "render_report", "write_page", "write_report"]


def _asset(name: str) -> str:
    return resources.files("pipeline.report").joinpath(name).read_text("utf-8")


def _digest(text: str) -> str:
    return base64.b64encode(hashlib.sha256(text.encode("utf-8")).digest()).decode("ascii")


@cache
def _environment() -> jinja2.Environment:
    environment = jinja2.Environment(
        loader=jinja2.FunctionLoader(_asset),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["seconds"] = seconds_text
    environment.filters["bytes"] = bytes_text
    return environment


def page_template(name: str, /) -> jinja2.Template:
    """A page of this package, with our style and script and a content policy that admits no others.

    Every string that it is given is escaped.
    """
    style, script = _asset("report.css"), _asset("report.js")
    policy = (
        f"default-src 'none'; img-src data:; style-src 'sha256-{_digest(style)}'; "
        f"script-src 'sha256-{_digest(script)}'; base-uri 'none'; form-action 'none'"
    )
    shared = {"policy": policy, "style": Markup(style), "script": Markup(script)}
    return _environment().get_template(name, globals=shared)


def render_report(data: ReportData) -> str:
    """Draw the whole page; equal data give equal text.

    Raises:
        ReportError: An array is not what its field documents.
    """
    return page_template("report.html").render(
        data=data,
        headline=headline(data),
        cards=cards(data),
        table=result_table(data),
        gains=gain_charts(data),
        boundary=pr_chart(data.boundary, title="Precision over recall of boundaries") if data.boundary else "",
        stages=curve_stages(data),
        gallery=gallery(data),
        keys=class_keys(data),
        blocks=feature_blocks(data),
        routers=router_tables(data),
        time=time_chart(data),
        store=store_lines(data),
    )


def write_report(data: ReportData, path: Path) -> Path:
    """Render to a file.

    Raises:
        ReportError: An array is not what its field documents, or the file cannot be written.
    """
    return write_page(render_report(data), path)


def write_page(text: str, path: Path) -> Path:
    """Write a page, replacing it in one step: a reader sees the old one or the new one, never half.

    Raises:
        ReportError: The file cannot be written.
    """
    path = Path(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".tmp", dir=path.parent)
    except OSError as error:
        raise ReportError(f"report {path}: cannot write there ({error.strerror}); choose another folder") from error
    try:
        with os.fdopen(handle, "w", encoding="utf-8", newline="\n") as stream:
            stream.write(text)
            stream.flush()
            os.fsync(stream.fileno())
        os.chmod(temporary, 0o644)  # mkstemp makes it private, but a report is there to be shared
        os.replace(temporary, path)
    except OSError as error:
        raise ReportError(f"report {path}: cannot be written ({error.strerror}); free space or move it") from error
    finally:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(temporary)
    return path
