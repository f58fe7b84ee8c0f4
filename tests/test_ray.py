"""A Ray cluster of two workers does what one process does: engine, audit, prepare, a fleet."""

import json
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import test_engines as work
import tiny
from PIL import Image

from poise.engines import ordered_map
from poise.errors import Interrupted, UsageError
from poise.signals import catch_signals
from poise.tuning.fleet import run_workers

pytestmark = pytest.mark.filterwarnings("ignore")  # of Ray's own parts


@pytest.fixture(scope="module")
def cluster() -> Iterator[Any]:
    ray = pytest.importorskip("ray")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        patch.setenv("RAY_worker_niceness", "0")  # its workers yield to all others
        patch.setenv("PYTHONPATH", str(Path(__file__).parent))  # for the functions of the tests
        ray.init(
            address="local",
            num_cpus=2,
            include_dashboard=False,
            log_to_driver=False,
            logging_level="ERROR",
        )
        yield ray
        ray.shutdown()


def test_results_are_those_of_the_local_engine(cluster: Any, tmp_path: Path) -> None:
    results = ordered_map(work.look, [*range(8), -5], engine="ray", workers=2)
    for one, other in zip(ordered_map(work.look, range(8), workers=1), results, strict=False):
        assert work.same(one, other)
    with pytest.raises(ValueError, match="negative") as caught:
        next(results)
    assert "while working on -5" in caught.value.__notes__
    deadly = partial(work.deadly, folder=tmp_path)
    results = ordered_map(deadly, range(6, 9), engine="ray", on_death=work.buried)
    assert list(results) == [-6, 1007, -8]
    assert cluster.is_initialized()  # whoever connected disconnects


def test_audit_and_prepare_write_what_the_local_engine_writes(cluster: Any, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    for index in range(130):  # three jobs of a scan
        path = tmp_path / "images" / "ab"[index % 2] / f"{index:03d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (8, 8, 3), np.uint8)).resize((20, 20)).save(path)
    (tmp_path / "images" / "a" / "cut.png").write_bytes(path.read_bytes()[:40])
    for engine in ("local", "ray"):
        chosen = ["--engine", engine, "--workers", "2" if engine == "ray" else "1"]
        out = tmp_path / engine
        source = str(tmp_path / "images")
        assert tiny.call("audit", source, "--out", str(out / "audit"), *chosen) == 0
        assert tiny.call("prepare", source, str(out / "set"), *chosen) == 0
    found = [json.loads((tmp_path / e / "audit/audit.json").read_text()) for e in ("local", "ray")]
    assert found[0] == found[1]
    one, other = (
        {p.relative_to(root): p.read_bytes() for p in sorted(root.rglob("*")) if p.is_file()}
        for root in (tmp_path / "local" / "set", tmp_path / "ray" / "set")
    )
    assert one.keys() == other.keys() and len(one) >= 5
    assert [name for name in one if one[name] != other[name]] == []


def patient(seat: str, *, folder: Path) -> int:
    """Works until it is asked to stop, and saves its state; the seat `wrong` fails meanwhile."""
    begun = folder / "begun"
    while seat == "wrong" and not begun.exists():
        time.sleep(0.01)
    if seat == "wrong":
        return work.usage(7)
    with catch_signals() as caught:
        begun.touch()
        while not caught.names:
            time.sleep(0.01)
    (folder / "saved").write_text(" ".join(caught.names))
    raise Interrupted("Stopped by a signal; the state is saved.")


def test_a_fleet_outlives_a_death_and_stops_at_an_error(cluster: Any, tmp_path: Path) -> None:
    news: list[int] = []
    run = partial(run_workers, engine="ray", on_news=lambda: news.append(1))
    assert run(partial(work.deadly, folder=tmp_path), [3, 4]) == [-3, -4] and news
    with pytest.raises(UsageError, match="seven"):
        run(partial(patient, folder=tmp_path), ["patient", "wrong"])
    assert (tmp_path / "saved").read_text() == "SIGINT"
