"""Planted faults are found with their moment; healthy curves of many shapes stay quiet."""

import json
import math
import os
import subprocess
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from poise.api.doctor import doctor
from poise.artifacts import RunDir, append_jsonl, save_tensors, write_json
from poise.errors import DataError, UsageError
from poise.processes import this_process
from poise.stability.foreign import log_of, read_log
from poise.stability.logs import judge

Array = np.ndarray
N, AT = 1000, 600


def falling(n: int, seed: int, noise: float = 0.1) -> Array:
    """A healthy error: falls from 1, fast and then slowly."""
    t = np.arange(n)
    level = 0.25 + 0.7 * np.exp(-t / (n / 10))
    chance = np.random.default_rng(seed)
    return level * (1 + 10 * t / n) ** -0.1 * np.exp(chance.normal(0, noise, n))


def signed(y: Array) -> Array:
    """The loss of a network that learns its uncertainty: it crosses zero."""
    n = len(y)
    t = np.arange(n)
    u = np.log((0.25 + 0.7 * np.exp(-t / (n / 10))) * (1 + 10 * t / n) ** -0.1)
    return y / np.exp(u) + u


def log(loss: Array, gradient: Array | None = None, rate: Array | None = None) -> Any:
    columns = {"loss": loss, "grad_norm": gradient, "lr": rate}
    known = {name: values.tolist() for name, values in columns.items() if values is not None}
    rows = [
        {"step": i, **{name: values[i] for name, values in known.items()}} for i in range(len(loss))
    ]
    return log_of(rows, "planted")


def norms(n: int, seed: int = 5) -> Array:
    """Gradient norms as they are measured: log-normal, ln deviation 0.55."""
    return np.exp(np.random.default_rng(seed).normal(0, 0.55, n))


SHAPES: dict[str, Callable[[Array, int], Array]] = {
    "exponential": lambda t, n: 0.3 + 0.7 * np.exp(-8 * t / n),
    "fast": lambda t, n: 0.3 + 0.7 * np.exp(-40 * t / n),
    "power": lambda t, n: (1 + t) ** -0.3,
    "language": lambda t, n: 10 * (1 + t / 20) ** -0.2,
    "line": lambda t, n: 2 - 1.5 * t / n,
    "cosine": lambda t, n: 0.6 + 0.4 * np.cos(np.pi * t / n),
}


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("n", [12, 40, 150, 700])
def test_healthy_logs_are_quiet(shape: str, n: int) -> None:
    t = np.arange(n, dtype=float)
    level = SHAPES[shape](t, n)
    for seed in range(3):
        chance = np.random.default_rng(seed)
        for noise in (0.02, 0.15, 0.3):
            own = level * np.exp(chance.normal(0, noise, n))
            for loss in (own, own / level + np.log(level), level + chance.normal(0, noise, n)):
                assert judge(log(loss, norms(n, seed), np.full(n, 1e-3))) == []


@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 10_000),
    scale=st.floats(1e-3, 1e3),
    shift=st.floats(-50, 50),
    n=st.integers(2, 400),
)
def test_neither_scale_nor_shift_of_a_healthy_loss_matters(
    seed: int, scale: float, shift: float, n: int
) -> None:
    assert judge(log(scale * signed(falling(n, seed)) + shift)) == []


def spike(y: Array, g: Array, lr: Array) -> None:
    y[AT] += 4
    g[AT] *= 60


def damaged(y: Array, g: Array, lr: Array) -> None:
    y[AT:] = math.nan


def one_nan(y: Array, g: Array, lr: Array) -> None:
    y[AT] = math.nan


def backward(y: Array, g: Array, lr: Array) -> None:
    g[AT] = math.inf


def rose(y: Array, g: Array, lr: Array) -> None:
    y[AT:] += 3 * np.minimum(np.arange(N - AT) / 20, 1)


def exploded(y: Array, g: Array, lr: Array) -> None:
    y[AT:] = np.exp(np.arange(N - AT) / 10)


def rate(y: Array, g: Array, lr: Array) -> None:
    lr[AT - 3 :] *= 20
    y[AT:] = 1.2 + 0.05 * np.sin(np.arange(N - AT) * 7.0)


def swinging(y: Array, g: Array, lr: Array) -> None:
    y += 1.5 + np.sin(np.arange(N) * 2 * np.pi / 20)


def alternating(y: Array, g: Array, lr: Array) -> None:
    y[AT:] += 2 + (-1.0) ** np.arange(N - AT)


def flat(y: Array, g: Array, lr: Array) -> None:
    y[:] = 1 + np.random.default_rng(8).normal(0, 0.03, N)


def stuck(y: Array, g: Array, lr: Array) -> None:
    y[:] = 2 - np.minimum(np.arange(N), 300) / 300 + np.random.default_rng(3).normal(0, 0.02, N)


def same(y: Array, g: Array, lr: Array) -> None:
    y[AT:] = y[AT]


def vanished(y: Array, g: Array, lr: Array) -> None:
    g[AT:] *= 1e-6


def grew(y: Array, g: Array, lr: Array) -> None:
    g[AT:] *= np.exp(np.minimum(np.arange(N - AT) / 20, 5))


def gradient_alone(y: Array, g: Array, lr: Array) -> None:
    g[AT] *= 500


FAULTS: list[tuple[Callable[[Array, Array, Array], None], str, str, int]] = [
    (spike, "bad-batch", "warning", AT),
    (damaged, "weights-damaged", "critical", AT),
    (one_nan, "non-finite-activation", "warning", AT),
    (backward, "non-finite-gradient", "warning", AT),
    (rose, "divergence", "critical", AT),
    (exploded, "divergence", "critical", AT),
    (rate, "lr-too-high", "critical", AT),
    (swinging, "oscillation", "warning", 0),
    (alternating, "oscillation", "warning", AT),
    (flat, "plateau", "warning", 0),
    (stuck, "plateau", "warning", 300),
    (same, "stale-layer", "critical", AT),
    (vanished, "vanishing-gradients", "warning", AT),
    (grew, "exploding-gradients", "warning", AT),
    (gradient_alone, "bad-batch", "warning", AT),
]


@pytest.mark.parametrize(("fault", "cause", "severity", "since"), FAULTS)
@pytest.mark.parametrize("kind", ["positive", "signed"])
def test_planted_faults_are_found(
    fault: Callable[[Array, Array, Array], None], cause: str, severity: str, since: int, kind: str
) -> None:
    for seed in range(2):
        y = falling(N, seed)
        y = signed(y) if kind == "signed" else y
        g, lr = norms(N, seed), np.full(N, 1e-3)
        fault(y, g, lr)
        found = {finding.cause: finding for finding in judge(log(y, g, lr))}
        assert cause in found, (list(found), seed)
        assert found[cause].severity == severity
        assert found[cause].since is not None
        assert abs(found[cause].since - since) <= 0.1 * N
        others = {c for c, f in found.items() if f.severity != "info"} - {cause}
        assert others <= {"vanishing-gradients"}, others


def test_the_gradient_norm_may_lead_the_loss() -> None:
    """The numbers of BLOOM's first spike, steps 31,214 to 31,219."""
    chance = np.random.default_rng(0)
    loss = 2.25 + chance.normal(0, 0.04, 400)
    norm = 0.24 * np.exp(chance.normal(0, 0.15, 400))
    loss[200:206] = [2.20, 2.22, 2.60, 2.24, 2.35, 5.10]
    norm[200:206] = [0.24, 0.95, 2.4, 15.9, 145, 960]
    found = [f for f in judge(log(loss, norm)) if f.cause == "bad-batch"]
    assert len(found) == 1 and 205 in found[0].evidence["at"]
    assert found[0].evidence["gradient_led_rows"] == 4
    assert "rows earlier" in found[0].sentence


def test_a_planned_cycle_is_no_oscillation() -> None:
    wave = np.sin(np.arange(N) * 2 * np.pi / 50)
    y = 2 + wave + np.random.default_rng(0).normal(0, 0.02, N)
    assert [f.cause for f in judge(log(y))] == ["oscillation"]
    assert judge(log(y, rate=1e-3 * (1.5 + wave))) == []


def test_validation_that_turned() -> None:
    rows: list[dict[str, Any]] = [{"step": i, "loss": v} for i, v in enumerate(falling(400, 0))]
    for healthy in (True, False):
        for i in range(0, 400, 20):
            up = 0 if healthy else max(0, i - 200) / 400
            rows[i]["val_loss"] = 0.5 + math.exp(-i / 60) + up
        causes = [f.cause for f in judge(log_of(rows, "x"))]
        assert causes == ([] if healthy else ["memorisation"])


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("a.csv", "step,loss,grad_norm\n{rows}"),
        ("b.csv", "global_step;train/loss;train/grad_norm\n{rows}"),
        ("c.csv", '"_step","run-1 - train_loss","Gradient Norm"\n{rows}'),
        ("d.tsv", "iter\ttotal_loss\tgnorm\n{rows}"),
        ("e.csv", "{rows}"),
    ],
)
def test_columns_are_guessed(tmp_path: Path, name: str, text: str) -> None:
    sign = ";" if name[0] == "b" else "\t" if name[0] == "d" else ","
    y, g = falling(300, 0), norms(300)
    rows = "\n".join(sign.join((str(i), str(y[i]), str(g[i]))) for i in range(300))
    (tmp_path / name).write_text(text.format(rows=rows))
    read = read_log(tmp_path / name)
    assert read.unit == "step" and set(read.columns) == {"loss", "grad_norm"}
    np.testing.assert_allclose(read.columns["loss"].values, y)
    assert doctor(tmp_path / name)[0]["findings"] == []


def test_json_of_several_kinds(tmp_path: Path) -> None:
    y = falling(200, 0)
    rows = [{"step": i, "train": {"loss": float(v)}, "eval_loss": None} for i, v in enumerate(y)]
    trainer = [{"step": 1 + i, "loss": float(v), "learning_rate": 1e-4} for i, v in enumerate(y)]
    for name, text in {
        "rows.jsonl": "".join(json.dumps(row) + "\n" for row in rows),
        "list.json": json.dumps(rows),
        "trainer_state.json": json.dumps({"epoch": 1, "log_history": trainer}, indent=1),
        "columns.json": json.dumps({"loss": y.tolist(), "step": list(range(200))}),
    }.items():
        (tmp_path / name).write_text(text)
        np.testing.assert_allclose(read_log(tmp_path / name).columns["loss"].values, y)


def test_empty_cells_are_no_fault_and_nan_is(tmp_path: Path) -> None:
    lines = [f"{i},{v if i % 3 == 0 else ''}" for i, v in enumerate(falling(600, 0))]
    path = tmp_path / "log.csv"
    path.write_text("step,loss\n" + "\n".join(lines))
    assert doctor(path)[0]["findings"] == []
    path.write_text("step,loss\n" + "\n".join([*lines, "600,nan", "601,inf", "602,-inf"]))
    (found,) = doctor(path)[0]["findings"]
    assert (found["cause"], found["since"]) == ("weights-damaged", 600)


def test_a_log_that_went_back_is_read_as_it_was_the_last_time() -> None:
    y = falling(400, 0)
    bad = y[200:260] + 5
    steps = [*range(260), *range(200, 400)]
    rows = [
        {"step": s, "loss": float(v)}
        for s, v in zip(steps, np.concatenate([y[:200], bad, y[200:]]), strict=True)
    ]
    read = log_of(rows, "x")
    np.testing.assert_allclose(read.columns["loss"].values, y)
    assert judge(read) == [] and read.resumed == (200.0,)


def test_a_counter_within_each_epoch_is_no_time() -> None:
    rows = [{"step": i % 50, "loss": float(v)} for i, v in enumerate(falling(400, 0))]
    read = log_of(rows, "x")
    assert read.unit == "row" and len(read.x) == 400


def test_what_is_no_log_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "x.csv"
    path.write_text("a,b\n1,2\n")
    with pytest.raises(DataError, match=r"known as a loss; its columns: a, b"):
        doctor(path)
    path.write_bytes(b"\0\1binary")
    with pytest.raises(UsageError, match="not text"):
        doctor(path)
    with pytest.raises(UsageError, match="There is no file"):
        doctor(tmp_path / "missing")
    with pytest.raises(UsageError, match="holds no run"):
        doctor(tmp_path)
    path.write_text("")
    with pytest.raises(DataError):
        doctor(path)


# Run folders.


def healthy_run(root: Path, status: str = "finished") -> RunDir:
    run = RunDir(root)
    about = {"source": "my photos", "status": status, "images_seen": 64_000}
    write_json(run.run, {**about, "planned_images": 64_000})
    y, g = falling(200, 1, 0.05), norms(200)
    for i in range(200):
        seen = (i + 1) * 320
        bands = [{"sigma": s, "error": y[i], "count": 40} for s in (0.1, 0.5, 2.0, 9.0)]
        row = {"images_seen": seen, "step": i * 10, "loss": math.log(y[i]), "error": y[i]}
        more = {"lr": 0.01, "grad_norm": g[i], "skipped": 0, "update_ratio": 1e-3, "bands": bands}
        append_jsonl(run.log("metrics"), {**row, **more})
        append_jsonl(
            run.log("timing"), {"images_seen": seen, "seconds": i, "data_wait_s": 0.02 * i}
        )
    for i in range(1, 11):
        for name, gain in (("raw", 1.0), ("ema_0.100", 0.9)):
            loss = gain * (0.2 + math.exp(-i))
            append_jsonl(
                run.log("validation"), {"images_seen": 6400 * i, "weights": name, "loss": loss}
            )
        size = {"weight_rms": 1.0, "activation_rms": 1.2, "activation_rms_highest": 1.5}
        append_jsonl(run.log("magnitudes"), {"images_seen": 6400 * i, **size})
    for seen in (60_000, 64_000):
        save_tensors(run.checkpoint_at(seen), {"denoiser/w": torch.ones(3)}, {"step": 1})
    return run


def causes(run: RunDir) -> dict[str, dict[str, Any]]:
    return {finding["cause"]: finding for finding in doctor(run.root)[0]["findings"]}


def change(run: RunDir, name: str, edit: Callable[[int, dict[str, Any]], Any]) -> None:
    """Rewrite a log; `edit` changes row i in place."""
    rows = [json.loads(line) for line in run.log(name).read_text().splitlines()]
    for i, row in enumerate(rows):
        edit(i, row)
    run.log(name).write_text("".join(json.dumps(row) + "\n" for row in rows))


def test_a_healthy_run_is_healthy_and_untouched(tmp_path: Path) -> None:
    run = healthy_run(tmp_path)
    before = {p: p.read_bytes() for p in sorted(tmp_path.rglob("*")) if p.is_file()}
    found, lines = doctor(run.root)
    assert (found["status"], found["state"], found["findings"]) == ("healthy", "finished", [])
    assert "Nothing is wrong that these files would show." in lines
    assert before == {p: p.read_bytes() for p in sorted(tmp_path.rglob("*")) if p.is_file()}


def test_states_of_a_run(tmp_path: Path) -> None:
    run = healthy_run(tmp_path, "interrupted")
    found = causes(run)
    assert list(found) == ["interrupted"]
    assert f"poise train 'my photos' --run {tmp_path} --resume" in found["interrupted"]["do"]
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    info = json.loads(run.run.read_text()) | {"status": "running"}
    for pid, state in ((os.getpid(), "running"), (process.pid, "killed")):
        write_json(run.run, info)
        write_json(run.alive, this_process() | {"pid": pid})
        assert doctor(run.root)[0]["state"] == state
    assert causes(run)["killed"]["severity"] == "critical"
    run.alive.unlink()
    write_json(run.run, info)
    assert doctor(run.root)[0]["state"] == "running"
    for path in run.root.glob("*.json*"):
        os.utime(path, (1, 1))
    assert doctor(run.root)[0]["state"] == "killed"


def test_checkpoints_are_opened(tmp_path: Path) -> None:
    run = healthy_run(tmp_path, "interrupted")
    newest, older = run.checkpoint_at(64_000), run.checkpoint_at(60_000)
    save_tensors(newest, {"denoiser/w": torch.tensor([1.0, math.nan])}, {"step": 1})
    content = bytearray(older.read_bytes())
    content[-1] ^= 1
    older.write_bytes(content)
    (run.checkpoints / ".000000070000.safetensors.ab.part").write_bytes(b"half")
    found = causes(run)
    assert found["weights-damaged"]["since"] == 64_000
    assert "checksum" in found["damaged-checkpoint"]["sentence"]
    severe = {f["sentence"] for f in doctor(run.root)[0]["findings"] if f["severity"] == "critical"}
    assert any("no whole checkpoint to resume from" in sentence for sentence in severe)
    save_tensors(newest, {"ema_0/w": torch.tensor([math.inf])}, {"step": 1})
    assert "ema-damaged" in causes(run)


def late(value: Callable[[float], float], key: str) -> Callable[[int, dict[str, Any]], None]:
    def edit(i: int, row: dict[str, Any]) -> None:
        if i >= 120:
            row[key] = value(row[key])

    return edit


def test_what_the_logs_show_without_the_guard(tmp_path: Path) -> None:
    plain = healthy_run(tmp_path / "plain")

    def check(name: str, edit: Callable[[int, dict[str, Any]], Any], *expected: str) -> None:
        kept = plain.log(name).read_text()
        change(plain, name, edit)
        found = causes(plain)
        assert set(found) == set(expected)
        plain.log(name).write_text(kept)

    check("metrics", late(lambda e: 0.98 + 0.01 * math.sin(1e3 * e), "error"), "lr-too-high")
    check("metrics", late(lambda n: 90.0, "skipped"), "non-finite-gradient")
    check("timing", lambda i, row: row.update(data_wait_s=0.6 * i), "data-starvation")
    check(
        "validation",
        lambda i, row: row.update(loss=row["loss"] * (1 + max(0, i - 8) / 20)),
        "memorisation",
    )
    check(
        "validation",
        lambda i, row: row.update(loss=row["loss"] * (1.5 if row["weights"] != "raw" else 1)),
        "ema-too-long",
    )
    check(
        "validation",
        lambda i, row: row.update(loss=math.nan if row["weights"] != "raw" and i > 12 else 0.5),
        "ema-damaged",
    )
    check(
        "magnitudes",
        lambda i, row: row.update(activation_rms_highest=1.5 * 1.4**i),
        "activation-growth",
    )
    check("magnitudes", lambda i, row: row.update(weight_rms=1.2**i), "weight-growth")

    def one_band(i: int, row: dict[str, Any]) -> None:
        row["bands"][1]["error"] *= 4 if i > 150 else 1

    check("metrics", one_band, "broken-band")


def test_incidents_are_gathered_by_cause(tmp_path: Path) -> None:
    run = healthy_run(tmp_path)
    for seen in (9_000, 7_000, 12_000):
        row = {
            "images_seen": seen,
            "severity": "warning" if seen < 12_000 else "critical",
            "kind": "bad-batch",
            "cause": "bad-batch",
            "message": "error 30 times its usual value",
            "evidence": {"times": 30.0},
            "culprit": {"files": [f"{seen}.png", "same.png"]},
            "action": "skip",
        }
        append_jsonl(run.log("events"), row)
    append_jsonl(run.log("events"), {"images_seen": 1, "severity": "info", "kind": "resumed"})
    (found,) = causes(run).values()
    assert (found["severity"], found["since"]) == ("critical", 7_000)
    assert found["evidence"]["files"] == ["7000.png", "same.png", "9000.png", "12000.png"]
    assert "3 times" in found["sentence"] and "Action: skip." in found["sentence"]
    assert found["do"]


HOSTILE = "\x1b[31m\u202eevil\n</script><img onerror=x>" + "y" * 5000


def test_hostile_and_broken_files_do_no_harm(tmp_path: Path) -> None:
    run = healthy_run(tmp_path, HOSTILE)
    row = {"images_seen": 5, "severity": "warning", "kind": HOSTILE, "cause": HOSTILE}
    row |= {"message": HOSTILE, "evidence": {HOSTILE: [HOSTILE] * 99}, "action": HOSTILE}
    append_jsonl(run.log("events"), row | {"culprit": {"files": [HOSTILE, {"a": 1}]}})
    append_jsonl(run.log("events"), {**row, "evidence": 7, "culprit": [], "cost": "x"})
    with run.log("metrics").open("a") as file:
        file.write('null\n[]\n{"images_seen": "x"}\n' + "[" * 100_000 + "\n")
        file.write('{"images_seen": 70000, "loss": [], "error": "a", "bands": {"a": 1}}\n')
        file.write('{"images_seen": 80000, "bands": [1, null, {"sigma": "x"}]}\n{"images_se')
    append_jsonl(run.log("validation"), {"images_seen": 1, "weights": [1], "loss": {}})
    run.config.write_text(HOSTILE)
    found, lines = doctor(run.root)
    text = "\n".join(lines) + json.dumps(found, ensure_ascii=False)
    assert "\x1b" not in text and "\u202e" not in text and "\\u001b" in text
    assert max(map(len, lines)) < 1500
    assert {f["cause"] for f in found["findings"]} >= {"log-failed"}
    assert "4 lines that cannot be read" in text


@pytest.mark.parametrize(
    "missing", ["run.json", "metrics.jsonl", "validation.jsonl", "timing.jsonl"]
)
def test_missing_and_damaged_files(tmp_path: Path, missing: str) -> None:
    run = healthy_run(tmp_path)
    (tmp_path / missing).unlink()
    assert doctor(run.root)[0]["status"] == ("critical" if missing == "run.json" else "healthy")
    (tmp_path / missing).write_text('{"half')
    doctor(run.root)


@settings(max_examples=60, deadline=None)
@given(st.binary(max_size=300))
def test_any_bytes_are_read_or_refused(
    tmp_path_factory: pytest.TempPathFactory, data: bytes
) -> None:
    path = tmp_path_factory.mktemp("any") / "log.csv"
    for head in (b"", b"step,loss\n", b"{"):
        path.write_bytes(head + data)
        with suppress(DataError, UsageError):
            doctor(path)
