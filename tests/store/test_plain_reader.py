"""docs/store-format.md is enough to read a store: a reader written from it agrees with ours, byte for byte."""

from __future__ import annotations

import ast
import hashlib
import json
import re
import sys
from collections.abc import Callable
from itertools import product
from pathlib import Path

import numpy as np
import pytest
import store_samples

import store
from store.backends.registry import BACKENDS
from store.codecs.base import LevelSpec
from store.codecs.packing import GROUPS
from store.codecs.registry import CODECS, choose_codec, is_fitted, make_fitter
from store.document import parse_document, render_document
from store.order import image_permutation
from store.spec import ColumnSpec
from tests.store import plain_reader

PAGE = Path(__file__).resolve().parents[2] / "docs" / "store-format.md"
# The first two share a grid, so that klt predicts the second; 24 components leave blocks of 8 to the rotation.
LEVELS = ((24, 8, 12), (12, 8, 12), (6, 3, 5))
CHOICES: list[dict[str, object]] = [
    *({"name": name} for name in CODECS),
    {"name": "int8", "scale": "float16"},
    {"name": "int4", "group": 6},
    {"name": "int4", "rotate": False},
    {"name": "klt", "error": 0.0015, "block": 3},
    {"name": "klt", "error": 0.3, "block": 1, "chain": False},
]
CASES = [
    pytest.param((choice, backend), id="-".join([*map(str, choice.values()), backend]))
    for choice, backend in product(CHOICES, BACKENDS)
]
ROWS = 20


def maps(rows: range) -> list[np.ndarray]:
    """Components of very different sizes, so that klt uses integers of every width."""
    levels = []
    for level, (components, height, width) in enumerate(LEVELS):
        sizes = 10.0 ** np.linspace(3, -1, components)[:, None, None]
        values = [np.random.default_rng((row, 1)).normal(0, 1, (24, height, width)) for row in rows]
        smooth = np.cumsum(np.stack(values), axis=-1)[:, :components]
        noise = [np.random.default_rng((row, level)).normal(0, 0.1, smooth.shape[1:]) for row in rows]
        levels.append((sizes * (smooth + np.stack(noise))).astype(np.float32))
    return levels


def fill(root: Path, choice: dict[str, object], backend: str) -> store.Store:
    made = store.create(root)
    # Each view ends with a short part.
    views = made.create_view_set(store_samples.view_spec(images=10, views=2))
    specs = [LevelSpec(components=c, height=h, width=w) for c, h, w in LEVELS]
    if is_fitted(choice):
        fitter = make_fitter(choice, specs)
        for _ in range(fitter.passes):
            fitter.add(maps(range(ROWS)))
            fitter.end_pass()
    codec = fitter.codec() if is_fitted(choice) else choose_codec(choice)
    spec = ColumnSpec(view_set="train", teacher="dino", identity={"é": [1, 2.5]}, levels=tuple(specs), codec=codec)
    for part in views.missing_parts():
        views.write_part(part, [store_samples.view_row(views.spec, row) for row in views.spec.part_rows(part)])
    column = made.create_column(spec, backend=backend)
    for part in column.missing_parts():
        column.write_part(part, spec.encode_levels(maps(views.spec.part_rows(part))), keys=views.keys(part))
    return made


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Callable[[dict[str, object], str], Path]:
    made: dict[str, Path] = {}

    def make(choice: dict[str, object], backend: str) -> Path:
        key = f"{choice} {backend}"
        if key not in made:
            made[key] = tmp_path_factory.mktemp("plain") / "store"
            fill(made[key], choice, backend)
        return made[key]

    return make


@pytest.mark.parametrize("case", CASES)
def test_every_codec_and_backend_is_read_alike(place: Callable[..., Path], case: tuple[dict[str, object], str]):
    root = place(*case)
    ours = store.open(root)
    (name,) = ours.column_names("train")
    column = plain_reader.Column(root, "train", name)
    expected = ours.read("train", columns=[name], rows=range(ROWS))[name]
    spread = [values.std() for values in expected]
    for part in range(column.views.parts):
        rows = column.views.commit(part)
        for level, values in enumerate(column.read(part)):
            wanted = expected[level][rows["start"] : rows["stop"]]
            assert values.dtype == np.float32
            if column.spec["codec"]["name"] in ("fp32", "fp16", "bf16", "int8"):
                np.testing.assert_array_equal(values, wanted)
            else:  # sums in another order
                np.testing.assert_allclose(values, wanted, rtol=1e-4, atol=1e-5 * spread[level])


def test_a_document_is_its_own_canonical_form_spread_over_lines(place: Callable[..., Path]):
    """The page's rule for those whose language prints numbers otherwise: drop the digest and the white space."""
    paths = [path for path in place(CHOICES[-1], "zarr").rglob("*.json") if path.name != "zarr.json"]
    assert len(paths) > 8
    for path in paths:
        text = path.read_text(encoding="utf-8")
        digest = re.search(r',\n "sha256": "([0-9a-f]{64})"\n}\n$', text)
        assert digest is not None
        strings = re.split(r'("(?:[^"\\\\]|\\\\.)*")', text[: digest.start()] + "}")
        squeezed = "".join(part if place % 2 else re.sub(r"\s", "", part) for place, part in enumerate(strings))
        assert plain_reader.sha256(squeezed.encode()) == digest[1]


def test_klt_has_groups_of_every_width_and_a_prediction(place: Callable[..., Path]):
    root = place(CHOICES[-2], "zarr")
    (name,) = store.open(root).column_names("train")
    assets = plain_reader.Column(root, "train", name).assets
    assert (np.stack([assets[f"groups_{level}"] for level in range(3)]).sum(axis=0) > 0).all()
    assert "predict_1" in assets
    assert not {"predict_0", "predict_2"} & set(assets)
    assert [tuple(group) for group in GROUPS] == list(plain_reader.GROUPS)


def test_rows_keys_and_pixels_are_read_alike(place: Callable[..., Path]):
    root = place(CHOICES[0], "zarr")
    (views,) = store.open(root).view_sets()
    plain = plain_reader.ViewSet(root, "train")
    order = plain.order()
    assert order == image_permutation(10, order_seed=7).tolist()
    for part in range(plain.parts):
        members = plain.files(part)
        expected = views.read_part(part)
        for row, ours in zip(plain.index(part), expected, strict=True):
            draw = {key: value for key, value in (row["draw"] or {}).items() if value is not None}
            got = (row["row"], row["key"], row["view"], row["label"], row["error"], draw)
            assert got == (ours.row, ours.key, ours.view, ours.label, ours.error, dict(ours.draw))
            assert row["key"] == f"img/{order[row['row'] % 10]:03d}"
            assert {entry["suffix"] for entry in row["files"]} == set(ours.files)
            for suffix, content in ours.files.items():
                assert members[f"{row['row']:09d}.{suffix}"] == content


@pytest.mark.parametrize("count", [1, 4, 5, 1000])
def test_the_pages_generator_is_numpys(count: int):
    key = int.from_bytes(hashlib.sha256(b"x").digest()[:16], "little")
    assert plain_reader.philox(key, count) == np.random.Philox(key=key).random_raw(count).tolist()


def test_the_second_reader_knows_nothing_of_ours():
    tree = ast.parse(Path(plain_reader.__file__).read_text(encoding="utf-8"))
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0
            found.add((node.module or "").split(".")[0])
        assert not (isinstance(node, ast.Name) and node.id in ("__import__", "eval", "exec", "importlib"))
    assert found - set(sys.stdlib_module_names) == {"numpy", "pyarrow", "zarr", "zstandard"}


def test_the_pages_examples_are_true():
    """The worked example of a document, of a digest of keys, of the order, and of packing."""
    page = PAGE.read_text(encoding="utf-8")
    blocks = re.findall(r"```json\n(.*?)```", page, re.S)
    document = blocks[0].encode()
    assert parse_document(document, kind="store", where="") == {"created_by": "sak"}
    assert render_document("store", {"created_by": "sak"}) == document
    content = json.loads(document)
    digest = content.pop("sha256")
    canonical = plain_reader.canonical(content)
    assert canonical.decode() in page
    assert plain_reader.sha256(canonical) == digest
    assert plain_reader.keys_digest(["a", "bc"]) in page
    assert str(image_permutation(10, order_seed=7).tolist()) in page
    assert plain_reader.sha256(plain_reader.canonical(["images", 7]))[:32] in page
