"""The page: self-contained, escaped, well formed, equal for equal data, and saying what the data say."""

from __future__ import annotations

import base64
import dataclasses
import hashlib
import io
import math
import os
import re
import shutil
import subprocess
from collections.abc import Callable, Iterator
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pipeline.report.colour import colour_classes
from pipeline.report.data import (
    Curve,
    GallerySample,
    MetricColumn,
    ReportData,
    ReportError,
    RouterMap,
    RunRow,
    StageCost,
    StoreUsage,
)
from pipeline.report.pictures import picture
from pipeline.report.render import render_report, write_report
from pipeline.report.results import cards, headline
from pipeline.scores import ScoreLine

VOID = {"meta", "img", "input", "br", "link"}
EVIL = "<script>alert(1)</script>\"' onload='x' </style></title>"


class Page(HTMLParser):
    """Elements and attributes of a page; fails on tags that do not nest."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.text: dict[str, list[str]] = {}
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        assert len(attrs) == len(dict(attrs)), f"<{tag}> repeats an attribute"
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text.setdefault(self.open[-1] if self.open else "", []).append(data)

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.elements if name == tag]

    def values(self, attribute: str) -> Iterator[str]:
        yield from (a[attribute] or "" for _, a in self.elements if attribute in a)


def minimal() -> ReportData:
    run = RunRow(name="only", values={}, parameters=10, seconds=1.0)
    return ReportData(title="t", created="", dataset="scenes", columns=(), runs=(run,))


@pytest.fixture(scope="module")
def text(report: ReportData) -> str:
    return render_report(report)


def test_equal_data_give_equal_pages(text: str, build_report: Callable[..., ReportData]) -> None:
    assert render_report(build_report()) == text


def test_page_needs_nothing_from_outside(text: str) -> None:
    page = Page(text)
    assert all(uri.startswith("data:image/png;base64,") for uri in page.values("src"))
    assert all(link.startswith("#") for link in page.values("href"))
    assert not page.all("link")
    assert "url(" not in text
    assert "@import" not in text
    assert "http://" not in text
    assert "https://" not in text


def test_content_policy_admits_exactly_this_style_and_script(text: str) -> None:
    policy = next(a["content"] for a in Page(text).all("meta") if a.get("http-equiv") == "Content-Security-Policy")
    for tag in ("style", "script"):
        (body,) = re.findall(rf"<{tag}>(.*?)</{tag}>", text, flags=re.DOTALL)
        digest = base64.b64encode(hashlib.sha256(body.encode()).digest()).decode()
        assert f"{tag}-src 'sha256-{digest}'" in (policy or "")
    # The policy would silently drop inline styles, so there must be none.
    assert not list(Page(text).values("style"))


def test_anchors_lead_somewhere_and_ids_are_unique(text: str) -> None:
    page = Page(text)
    ids = list(page.values("id"))
    assert len(ids) == len(set(ids))
    assert {link[1:] for link in page.values("href")} <= set(ids)


def test_pictures_and_charts_have_words(text: str) -> None:
    page = Page(text)
    assert all(a.get("alt") and a.get("width") and a.get("height") for a in page.all("img"))
    assert all(a.get("aria-label") or a.get("aria-hidden") == "true" for a in page.all("svg"))


def test_everything_is_shown_without_script(report: ReportData, text: str) -> None:
    page = Page(text)
    hidden = [tag for tag, attributes in page.elements if "hidden" in attributes]
    assert hidden == ["fieldset"]  # the run picker, which is of no use without its script
    per_sample = 1 + 6 + 3 * 6 + 1 + 2 * 12
    assert len(page.all("img")) == per_sample * len(report.gallery)


def _hostile() -> ReportData:
    ones, image = np.ones((8, 8), np.uint8), np.zeros((8, 8, 3), np.uint8)
    column = MetricColumn(task="semseg", metric=EVIL, label=EVIL, higher_is_better=True)
    sample = GallerySample(
        key=EVIL,
        image=image,
        labels={"semseg": ones},
        predictions={EVIL: {"semseg": ones}, EVIL + "2": {"semseg": ones}},
        features={EVIL: (image,), f"teacher {EVIL}": (image,)},
    )
    weights = np.ones((1, 1, 2))
    runs = (
        RunRow(name=EVIL, description=EVIL, values={"semseg": 2.0}, delta={EVIL + "2": 1.0}, parameters=1, seconds=1.0),
        RunRow(name=EVIL + "2", values={"semseg": 1.0}, parameters=1, seconds=1.0),
    )
    return ReportData(
        title=EVIL,
        created=EVIL,
        dataset=EVIL,
        columns=(column,),
        runs=runs,
        curves=(Curve(run=EVIL, stage="distill", steps=np.arange(3), values={"total": np.ones(3), EVIL: np.ones(3)}),),
        gallery=(sample,),
        routers=(RouterMap(run=EVIL, tasks=(EVIL,), levels=(EVIL,), experts=(EVIL, "b"), weights=weights),),
        costs=(StageCost(stage=EVIL, run=EVIL, seconds=1.0, rate=EVIL, detail=EVIL),),
        store=(
            StoreUsage(
                column=EVIL, codec=EVIL, rows=1, bytes_stored=1, bytes_fp16=2, bytes_per_image=1.0, fidelity=EVIL
            ),
        ),
        recipe_yaml=EVIL,
        versions={EVIL: EVIL},
        notes=(EVIL,),
        classes={"semseg": ("ground", EVIL)},
    )


def test_hostile_text_stays_text() -> None:
    text = render_report(_hostile())
    page = Page(text)
    assert len(page.all("script")) == 1
    assert len(page.all("style")) == 1
    assert not [name for _, a in page.elements for name in a if name.startswith("on")]
    assert "<script>alert" not in text
    assert text.count("&lt;script&gt;alert(1)") > 30


def test_results_say_what_the_data_say(text: str) -> None:
    best = re.findall(r'<strong title="best of all runs">([^<]*)</strong>', text)
    assert best == ["41.30", "22.80", "18.91", "0.874", "0.0612", "71.90"]
    rows = re.findall(
        r'class="num delta ([a-z]*)">(?:<span class="symbol" aria-hidden="true">(.)</span> )?([^<]*)<', text
    )
    assert rows == [
        ("up", "▲", "+6.42 %"),
        ("up", "▲", "+3.10 %"),
        ("", "", "baseline"),
        ("down", "▼", "−2.87 %"),
        ("up", "▲", "+2.95 %"),
        ("", "", "baseline"),
    ]
    assert "−0.70 %" in text  # saliency got worse, and the chart says so


def test_a_missing_value_is_a_dash_and_never_best(report: ReportData) -> None:
    first = dataclasses.replace(report.runs[0], values={"semseg": math.nan})
    lines = render_report(dataclasses.replace(report, runs=(first, *report.runs[1:])))
    assert lines.count('<td class="num">–</td>') == 6
    best = re.findall(r'<strong title="best of all runs">([^<]*)</strong>', lines)
    assert best == ["71.90", "38.00", "21.00", "19.60", "0.900", "0.0620"]


@pytest.mark.parametrize(("delta", "words"), [(2.0, "beats base"), (-2.0, "falls behind base"), (0.0, "equals base")])
def test_headline_is_derived_when_none_is_given(delta: float, words: str) -> None:
    run = RunRow(name="SAK", values={}, delta={"base": delta}, parameters=1, seconds=1.0)
    assert words in headline(dataclasses.replace(minimal(), runs=(run,)))


def test_every_metric_and_class_has_a_line(report: ReportData, text: str) -> None:
    assert "All metrics, and each class" not in text
    lines = (
        ScoreLine("normals", "", "median ↓", ("12.34°", "13.00°", "–")),
        ScoreLine("semseg", "IoU", "<b>wall</b>", ("50.00%", "40.00%", "45.00%")),
    )
    page = render_report(dataclasses.replace(report, scores=lines))
    Page(page)
    assert "<b>wall" not in page
    words = re.sub(r"<[^>]*>", " ", page[page.index("All metrics, and each class") :])
    found = " ".join(words.split())
    assert "normals median ↓ 12.34° 13.00° – semseg IoU &lt;b&gt;wall&lt;/b&gt; 50.00% 40.00% 45.00%" in found


def test_empty_sections_are_left_out() -> None:
    ids = set(Page(render_report(minimal())).values("id"))
    assert ids == {"main", "results", "recipe"}
    assert "No run" in render_report(dataclasses.replace(minimal(), runs=()))


def test_a_diverged_loss_can_still_be_drawn() -> None:
    values = {"total": np.array([1.0, np.nan, np.inf, 2.0]), "gone": np.full(4, np.nan)}
    curve = Curve(run="only", stage="finetune", steps=np.arange(4), values=values)
    short = Curve(run="other", stage="finetune", steps=np.arange(0), values={"total": np.zeros(0)})
    text = render_report(dataclasses.replace(minimal(), curves=(curve, short)))
    assert not re.search(r'[ "](nan|inf)[ "]', "".join(re.findall(r"<path[^>]*>|<circle[^>]*>", text)))


def test_class_pictures_hold_exactly_the_palette(report: ReportData, text: str) -> None:
    label = report.gallery[0].labels["semseg"]
    uri = next(a["src"] for a in Page(text).all("img") if a["alt"] == f"semseg, label, {report.gallery[0].key}")
    pixels = np.asarray(Image.open(io.BytesIO(base64.b64decode((uri or "").split(",")[1]))).convert("RGB"))
    assert np.array_equal(pixels, colour_classes(label, dataset="scenes", task="semseg"))


def test_large_pictures_are_reduced_and_class_colours_not_mixed() -> None:
    pixels = np.random.default_rng(0).integers(0, 2, (300, 600, 1), np.uint8).repeat(3, -1) * 255
    made = picture(pixels, alt="x", width=100, hard=True)
    image = Image.open(io.BytesIO(base64.b64decode(made.uri.split(",")[1]))).convert("RGB")
    assert image.size == (256, 128)
    assert set(np.unique(np.asarray(image))) == {0, 255}
    assert (made.width, made.height, made.crisp) == (100, 50, False)


@pytest.mark.parametrize(
    "pixels", [np.zeros((4, 4), np.uint8), np.zeros((4, 4, 3), np.float32), np.zeros((0, 4, 3), np.uint8)]
)
def test_pictures_refuse_other_arrays(pixels: np.ndarray) -> None:
    with pytest.raises(ReportError, match="uint8"):
        picture(pixels, alt="x", width=10)


def test_six_samples_of_three_runs_stay_small(build_report: Callable[..., ReportData]) -> None:
    assert len(render_report(build_report(samples=6)).encode()) < 5_000_000


def test_write_report_makes_folders_and_replaces(tmp_path: Path, report: ReportData) -> None:
    path = write_report(minimal(), tmp_path / "a" / "report.html")
    write_report(report, path)
    assert path.read_text("utf-8") == render_report(report)
    assert [p.name for p in path.parent.iterdir()] == ["report.html"]


def test_a_failed_write_leaves_the_old_page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_report(minimal(), tmp_path / "report.html")
    before = path.read_bytes()

    def full(fd: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(ReportError, match="No space left"):
        write_report(dataclasses.replace(minimal(), title="new"), path)
    assert path.read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ["report.html"]


def test_write_report_into_a_file_is_one_clear_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(ReportError, match="choose another folder"):
        write_report(minimal(), tmp_path / "file" / "report.html")


def test_data_refuse_what_does_not_fit() -> None:
    with pytest.raises(ReportError, match="one length"):
        Curve(run="a", stage="distill", steps=np.arange(3), values={"total": np.ones(4)})
    with pytest.raises(ReportError, match=r"\(1, 2, 3\)"):
        RouterMap(run="a", tasks=("t",), levels=("1", "2"), experts=("x", "y", "z"), weights=np.ones((1, 3, 2)))
    run = RunRow(name="twice", values={}, parameters=1, seconds=1.0)
    with pytest.raises(ReportError, match="twice"):
        dataclasses.replace(minimal(), runs=(run, run))


@pytest.mark.skipif(shutil.which("chromium") is None, reason="needs chromium")
def test_the_run_picker_works_in_a_browser(tmp_path: Path, report: ReportData) -> None:
    """The script's own content policy must let it run: it unhides the picker."""
    small = dataclasses.replace(report, gallery=report.gallery[:1])
    path = write_report(small, tmp_path / "report.html")
    command = ["chromium", "--headless", "--no-sandbox", "--disable-gpu", "--disable-background-networking"]
    command += [
        "--no-first-run",
        "--disable-sync",
        "--disable-component-update",
        f"--user-data-dir={tmp_path / 'profile'}",
    ]
    done = subprocess.run(
        [*command, "--dump-dom", path.as_uri()], capture_output=True, text=True, timeout=120, check=True
    )
    assert '<fieldset data-picker="gallery-table">' in done.stdout


def test_the_bytes_of_a_view_count_each_teacher_once(report: ReportData) -> None:
    """A teacher has a column for each view set; what one view takes is not their sum."""
    two = tuple(
        StoreUsage(
            column=f"{purpose} / {teacher}",
            codec="int8",
            rows=10,
            bytes_stored=10_000,
            bytes_fp16=20_000,
            bytes_per_image=1000,
        )
        for purpose in ("distill", "eval")
        for teacher in ("a", "b")
    )
    values = {card.label: card.value for card in cards(dataclasses.replace(report, store=two))}
    assert values["stored a view, 2 teachers"] == "2.00 kB"


def test_a_run_without_labels_has_its_loss_as_headline_and_no_empty_gallery(report: ReportData) -> None:
    column = MetricColumn(
        task="distill", metric="loss", label="held-out distillation", higher_is_better=False, digits=3
    )
    run = RunRow(name="sak", values={"distill": 5.8568}, parameters=1, seconds=1.0)
    samples = tuple(dataclasses.replace(sample, labels={}, predictions={}) for sample in report.gallery)
    photos = dataclasses.replace(report, summary="", dataset="", columns=(column,), runs=(run,), gallery=samples)
    assert headline(photos) == "sak: held-out distillation 5.857."
    page = render_report(photos)
    assert 'id="gallery"' not in page
    assert "What the student took over" in page
