"""Extraction over Dask equals extraction in one process, whatever happens to workers and scheduler meanwhile."""

from __future__ import annotations

import importlib
import logging
import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from pipeline.calibration import shares
from pipeline.cluster import dask_cluster, flight
from pipeline.cluster.attempt import anywhere
from pipeline.cluster.work import Place, make_columns, target_of
from pipeline.errors import BadImageError, PipelineError, TooManyBadError
from pipeline.extraction_events import events_path, read_events
from pipeline.extraction_log import ExtractionLog
from pipeline.stages.extract import extract
from pipeline.viewsets import make_part, view_set_spec
from store.errors import StoreError
from store.store import Store
from tests.pipeline.cluster.conftest import FITTED, SMALL, client_of, local_cluster, over, records, study_of
from tests.tiny_recipe import stored_bytes

dask, distributed = pytest.importorskip("dask"), pytest.importorskip("distributed")


def test_worker_processes_write_the_same_bytes(address: str, expected: dict[str, bytes], tmp_path: Path) -> None:
    extract([study_of(tmp_path, [*FITTED, *over(address)])])
    found = stored_bytes(tmp_path / "store")
    assert [name for name in found if found[name] != expected.get(name)] == []
    assert found.keys() == expected.keys()
    assert any("/first-" in name and name.endswith("column.json") for name in found)
    # Done again, no scheduler is asked.
    extract([study_of(tmp_path, [*FITTED, *over("tcp://127.0.0.1:1")])])


@pytest.mark.parametrize("workers", [1, 3])
def test_the_number_of_workers_shows_in_no_bit_of_a_fitted_codec(
    workers: int, expected: dict[str, bytes], tmp_path: Path
) -> None:
    assert len(shares(-(-17 // 2))) == 9
    with local_cluster(workers, processes=False) as made:
        extract([study_of(tmp_path, [*FITTED, *over(made.scheduler_address)])])
    assert stored_bytes(tmp_path / "store") == expected


def test_a_codec_that_wants_more_rows_than_a_view_has_is_fitted_to_that_view(address: str, tmp_path: Path) -> None:
    many = ["extract.codec={name: klt, error: 0.1, rows: 64}", "data.distill.views=2", "student.teachers=[first]"]
    extract([study_of(tmp_path / "process", many)])
    extract([study_of(tmp_path / "dask", [*many, *over(address)])])
    assert stored_bytes(tmp_path / "dask" / "store") == stored_bytes(tmp_path / "process" / "store")


def test_views_that_went_missing_are_made_before_what_an_exact_column_gives(address: str, tmp_path: Path) -> None:
    places = {"process": [], "dask": over(address)}
    for name, engine in places.items():
        study = study_of(tmp_path / name)
        extract([study])
        (view_set,) = Store.open(study.store).view_sets()
        view_set.discard(1)
        extract([study_of(tmp_path / name, ["extract.codec=int8", *engine])])
    assert stored_bytes(tmp_path / "dask" / "store") == stored_bytes(tmp_path / "process" / "store")


def test_a_column_is_made_from_an_exact_one(address: str, tmp_path: Path) -> None:
    places = {"process": [], "dask": over(address)}
    for name, engine in places.items():
        extract([study_of(tmp_path / name)])
        extract([study_of(tmp_path / name, ["extract.codec=int8", *engine])])
    assert stored_bytes(tmp_path / "dask" / "store") == stored_bytes(tmp_path / "process" / "store")


def test_a_killed_worker_costs_nothing_but_time(
    cluster: Any, address: str, expected_small: dict[str, bytes], tmp_path: Path
) -> None:
    study = study_of(tmp_path, [*SMALL, *over(address)])
    with client_of(address) as client:
        pids = list(client.run(os.getpid).values())
    killed: list[int] = []

    def kill() -> None:
        while records(tmp_path) < 3:
            time.sleep(0.002)
        os.kill(pids[0], signal.SIGKILL)
        killed.append(records(tmp_path))

    killer = threading.Thread(target=kill)
    killer.start()
    extract([study])
    killer.join()
    assert killed[0] < 2 * 11, "it had something left to do"
    assert stored_bytes(tmp_path / "store") == expected_small


def _stop_in(folder: Path, part: int) -> None:
    """Stop this worker, and no other, for ever, once it is known that it has made a view; a file says which it is."""
    try:
        with (folder / "hung").open("x", encoding="utf-8") as file:
            file.write(str(os.getpid()))
    except FileExistsError:
        return
    while part not in [e.fields["part"] for e in read_events(events_path(folder)) if e.name == "part_finished"]:
        time.sleep(0.01)  # or the view, whose result nobody could ask for, would be made again, and its columns with it
    os.kill(os.getpid(), signal.SIGSTOP)


def _hanging_columns(place: Any, targets: Any, part: int) -> object:
    if len(list(Path(place.store).glob("columns/*/*/commits/*.json"))) >= 3:
        _stop_in(Path(place.store).parent, part)
    return make_columns(place, targets, part)


@contextmanager
def ending(cluster: Any, root: Path) -> Iterator[None]:
    """Kill in the end the worker that was stopped, so that the cluster starts another."""
    before = set(cluster.scheduler.workers)
    try:
        yield
    finally:
        os.kill(int((root / "hung").read_text(encoding="utf-8")), signal.SIGKILL)
        while before <= set(cluster.scheduler.workers):
            time.sleep(0.01)


def test_what_a_worker_hangs_over_is_made_by_another(
    cluster: Any, address: str, expected_small: dict[str, bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Dask itself would wait five minutes for it."""
    monkeypatch.setattr("pipeline.cluster.extraction.make_columns", _hanging_columns)
    monkeypatch.setattr(flight, "_STRAGGLE_SECONDS", 0.5)
    monkeypatch.setattr(flight, "_RESULT_SECONDS", 1.0)
    log = ExtractionLog(events_path(tmp_path))
    with client_of(address) as client:
        client.wait_for_workers(2, timeout=60)
    with ending(cluster, tmp_path):
        extract([study_of(tmp_path, [*SMALL, *over(address)])], log=log)
    assert stored_bytes(tmp_path / "store") == expected_small
    events = read_events(events_path(tmp_path))
    assert {event.name for event in events} >= {"task_doubled", "run_finished"}
    parts = [(e.fields["teacher"], e.fields["part"]) for e in events if e.name == "part_finished"]
    assert sorted(parts, key=str) == sorted([(t, n) for t in ("first", None) for n in range(11)], key=str)


@pytest.mark.slow
def test_a_worker_stopped_wherever_it_is_is_started_anew(
    cluster: Any, address: str, expected_small: dict[str, bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It may hold a lock that others wait for, so that no second attempt helps: Dask ends what is silent for long."""
    monkeypatch.setattr(flight, "_RESULT_SECONDS", 1.0)
    with client_of(address) as client:
        client.wait_for_workers(2, timeout=60)
        client.run(lambda: importlib.import_module("pipeline.cluster.work"))  # which may keep it silent for long
        name, pid = client.run(os.getpid).popitem()

    def stop() -> None:
        while records(tmp_path) < 3:
            time.sleep(0.002)
        os.kill(pid, signal.SIGSTOP)
        while name in cluster.scheduler.workers:
            time.sleep(0.5)
            cluster.sync(_look, cluster.scheduler)

    stopper = threading.Thread(target=stop)
    stopper.start()
    extract([study_of(tmp_path, [*SMALL, *over(address)])])
    stopper.join()
    assert stored_bytes(tmp_path / "store") == expected_small


async def _look(scheduler: Any) -> None:
    """What the scheduler does every ``worker-ttl``, as if that were the shortest that it allows."""
    usual, scheduler.worker_ttl = scheduler.worker_ttl, 1.0
    await scheduler.check_worker_ttl()
    scheduler.worker_ttl = usual


def test_two_attempts_at_once_leave_one_part(address: str, tmp_path: Path) -> None:
    study = study_of(tmp_path)
    extract([study])
    before = stored_bytes(tmp_path / "store")
    store = Store.open(study.store)
    (view_set,) = store.view_sets()
    data = study.data.distill
    assert data is not None
    assert view_set_spec(data, labels=False).name == view_set.name
    column = next(column for column in store.columns(view_set.name) if column.spec.teacher == "first")
    place = Place(study.store, view_set.name, 1, "cpu", study.extract.batch)
    target = target_of(study.teachers["first"].spec("first"), column=column.name)
    with client_of(address) as client:
        client.wait_for_workers(2, timeout=60)
        workers = list(client.nthreads())
        for part in range(3):
            column.discard(part)
            view_set.discard(part)
            views = [
                client.submit(make_part, study.store, view_set.name, part, data, workers=[worker], pure=False)
                for worker in workers
            ]
            assert [made.rows for made in client.gather(views)] == [len(view_set.spec.part_rows(part))] * 2
            columns = [
                client.submit(make_columns, place, [target], part, workers=[worker], pure=False) for worker in workers
            ]
            client.gather(columns)
    assert stored_bytes(tmp_path / "store") == before


def test_a_bad_image_stops_with_its_own_error(address: str, tmp_path: Path) -> None:
    photos = tmp_path / "photos"
    photos.mkdir()
    (photos / "torn.jpg").write_bytes(b"\xff\xd8 torn")
    source = f"data.distill.source={{name: imagefolder, root: {photos}, split: all}}"
    with pytest.raises(BadImageError, match=r"torn\.jpg.*on_error: skip"):
        extract([study_of(tmp_path, [source, "data.distill.view={kind: full, size: 32}", *over(address)])])


def _failing_views(store: str, name: str, part: int, *arguments: Any) -> object:
    """Fail over one part, as often as a file says."""
    tries = Path(store).parent / "tries"
    left = int(tries.read_text(encoding="utf-8"))
    if part == 1 and left:
        tries.write_text(str(left - 1), encoding="utf-8")
        raise StoreError(f"{store}: the disk fails for a moment")
    return make_part(store, name, part, *arguments)


@pytest.mark.parametrize("times", [2, 5])
def test_what_another_attempt_may_mend_gets_two_more(
    times: int, address: str, expected_small: dict[str, bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pipeline.cluster.extraction.make_part", _failing_views)
    (tmp_path / "tries").write_text(str(times), encoding="utf-8")
    study = study_of(tmp_path, [*SMALL, *over(address)])
    ends = pytest.raises(StoreError, match="fails for a moment") if times > 2 else nullcontext()
    with ends:
        extract([study], log=ExtractionLog(events_path(tmp_path)))
    events = read_events(events_path(tmp_path))
    failed = [event.fields for event in events if event.name == "task_failed"]
    assert [event["retried"] for event in failed] == [True, True, False][: min(times, 3)]
    assert all("shard 1" in event["task"] and "for a moment" in event["error"] for event in failed)
    assert events[-1].name == ("run_failed" if times > 2 else "run_finished")
    assert events[-1].fields["tasks_failed"] == len(failed)
    assert times > 2 or stored_bytes(tmp_path / "store") == expected_small


def torn_photos(folder: Path, *, whole: int, torn: int) -> list[str]:
    """Overrides for a folder of photographs, some of which cannot be decoded."""
    folder.mkdir()
    for number in range(whole):
        Image.new("RGB", (40, 40), (number * 20, 90, 30)).save(folder / f"whole{number}.png")
    for number in range(torn):
        (folder / f"torn{number}.jpg").write_bytes(b"\xff\xd8 torn")
    source = f"data.distill.source={{name: imagefolder, root: {folder}, split: all}}"
    view = "data.distill.view={kind: full, size: 32}"
    return [source, view, "data.distill.on_error=skip", "data.distill.rows_per_shard=4"]


def test_bad_images_are_left_out_for_all_teachers_by_both_engines(address: str, tmp_path: Path) -> None:
    photos = [*torn_photos(tmp_path / "photos", whole=8, torn=2), "data.distill.max_bad=0.2"]
    told = {}
    for name, engine in {"process": [], "dask": over(address)}.items():
        study = study_of(tmp_path / name, [*photos, *engine])
        extract([study], log=ExtractionLog(events_path(tmp_path / name)))
        store = Store.open(study.store)
        (view_set,) = store.view_sets()
        bad = [row for row in range(10) if row not in view_set.usable_rows()]
        columns = list(store.columns(view_set.name))
        assert {column.spec.teacher for column in columns} == {"first", "second"}
        for column in columns:
            commits = column.commits.require(range(3))
            assert sorted(row for commit in commits for row in commit.excluded) == bad
        events = [event.fields for event in read_events(events_path(tmp_path / name)) if event.name == "bad_image"]
        told[name] = sorted((event["row"], event["key"], event["reason"]) for event in events)
        assert [row for row, _, _ in told[name]] == bad
        assert {key for _, key, _ in told[name]} == {"torn0", "torn1"}
    assert told["dask"] == told["process"]
    assert stored_bytes(tmp_path / "dask" / "store") == stored_bytes(tmp_path / "process" / "store")


def test_too_many_bad_images_stop_workers_too(address: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipeline.bad_rows._SECONDS", 0.0)
    photos = torn_photos(tmp_path / "photos", whole=1, torn=23)
    with pytest.raises(TooManyBadError, match=r"rows have no image.*max_bad is 1\.00%.*torn\d+\.jpg"):
        extract([study_of(tmp_path, [*photos, *over(address)])], log=ExtractionLog(events_path(tmp_path)))
    names = [event.name for event in read_events(events_path(tmp_path))]
    assert names[-2:] == ["limit_exceeded", "run_failed"]
    assert names.count("part_finished") < 6 + 12, "it stops before all is made"


def _die(*_: object) -> int:
    os._exit(1)


def test_a_shard_that_kills_workers_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With a cluster of its own: a worker that is killed while it starts is not always started again."""
    monkeypatch.setattr("pipeline.cluster.extraction.make_part", _die)
    told = r"views scenes\S+ shard \d: 1 Dask workers died.*extract\.batch"
    with (
        dask.config.set({"distributed.scheduler.allowed-failures": 0}),
        local_cluster(1, processes=True) as made,
        pytest.raises(PipelineError, match=told),
    ):
        extract([study_of(tmp_path, over(made.scheduler_address))])


def test_a_scheduler_that_goes_away_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dask_cluster, "_CONNECT_SECONDS", 1.0)
    monkeypatch.setattr(dask_cluster, "_PATIENCE_SECONDS", 1.0)
    with dask.config.set({"distributed.comm.timeouts.connect": "1s"}), local_cluster(1, processes=False) as made:
        study = study_of(tmp_path, [*SMALL, *over(made.scheduler_address)])
        ended: list[BaseException] = []

        def work() -> None:
            try:
                extract([study])
            except PipelineError as error:
                ended.append(error)

        worker = threading.Thread(target=work)
        worker.start()
        while records(tmp_path) < 2 and worker.is_alive():
            time.sleep(0.002)
        made.sync(made.scheduler.close)
        worker.join()
    assert "went away; start it again and run the same command" in str(ended[0])


def test_no_scheduler_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dask_cluster, "_CONNECT_SECONDS", 0.5)
    with pytest.raises(PipelineError, match=r"no Dask scheduler answers at tcp://127\.0\.0\.1:1 .*dask scheduler"):
        extract([study_of(tmp_path, over("tcp://127.0.0.1:1"))])


_ran: dict[str, set[str]] = {}


def _noting_columns(*arguments: Any) -> int:
    _ran["columns"].add(str(distributed.get_worker().name))
    return make_columns(*arguments)


def _noting_views(*arguments: Any) -> int:
    _ran["views"].add(str(distributed.get_worker().name))
    return make_part(*arguments)


@pytest.mark.parametrize("asked", [True, False])
def test_teachers_run_where_gpus_are(asked: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _ran.update(columns=set(), views=set())
    monkeypatch.setattr("pipeline.cluster.extraction.make_columns", _noting_columns)
    monkeypatch.setattr("pipeline.cluster.extraction.make_part", _noting_views)
    plain = {"cls": distributed.Worker, "options": {"nthreads": 1}}
    gpu = {"cls": distributed.Worker, "options": {"nthreads": 1, "resources": {"GPU": 1}}}
    scheduler = {"cls": distributed.Scheduler, "options": {"host": "127.0.0.1", "dashboard_address": "127.0.0.1:0"}}
    workers = {"plain": plain, "gpu": gpu}
    with distributed.SpecCluster(workers=workers, scheduler=scheduler, silence_logs=logging.CRITICAL) as made:
        asking = ["extract.gpu_workers=true"] if asked else []
        small = "data.distill.rows_per_shard=2"
        extract([study_of(tmp_path, [small, *asking, *over(made.scheduler_address)])])
    assert _ran["columns"] == {"gpu"}
    assert "plain" in _ran["views"]


@pytest.mark.parametrize("path", ["s3://bucket/store", "https://example.org/x.tar"])
def test_urls_stay_as_they_are(path: str) -> None:
    assert anywhere(path) == path


def test_paths_are_made_absolute(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", "/home/someone")
    assert anywhere("runs/store") == str(tmp_path / "runs/store")
    assert anywhere("~/photos") == "/home/someone/photos"
