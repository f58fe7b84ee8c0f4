"""Records of scores as evaluation writes them: a healthy one, and planted liars."""

import copy
from typing import Any

CLASSES = ["plane", "car", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]
SIGMAS = (0.03, 0.08, 0.2, 0.55, 1.5, 4.0, 10.0)
_KINDS = {
    "fidelity": {
        "frechet_distance": (0.741, 0.713, 0.05, "lower"),
        "frechet_distance_infinite": (0.33, 0.31, 0.04, "lower"),
        "kernel_distance": (0.00004, -0.00012, 0.0002, "lower"),
        "kernel_distance_subsets": (0.00005, -0.0001, 0.0003, "lower"),
        "cmmd": (0.031, 0.030, 0.004, "lower"),
        "inception_score": (6.1, 6.2, 0.2, "higher"),
        "precision": (0.79, 0.804, 0.03, "higher"),
        "density": (0.98, 1.01, 0.05, "higher"),
        "fine_detail": (0.985, 0.99, 0.03, "match"),
    },
    "diversity": {
        "recall": (0.78, 0.79, 0.03, "higher"),
        "coverage": (0.945, 0.955, 0.02, "higher"),
        "vendi": (33.2, 34.0, 0.8, "match"),
        "rarity": (2.1, 2.15, 0.1, "match"),
        "groups_missed": (0, 0, None, "lower"),
    },
    "novelty": {
        "nearest_train_distance": (2.31, 2.19, 0.06, "match"),
        "copies": (0.0, 0.0, 0.002, "lower"),
        "carlini_copies": (0.0, 0.0, 0.002, "lower"),
        "authentic": (0.74, 0.738, 0.03, "match"),
        "c_t": (0.15, 0.1, 1.0, "match"),
        "fld": (-1.3, -1.2, None, "lower"),
        "fld_gap": (-1.1, 0.4, 1.2, "match"),
    },
    "denoising": {
        "denoising_error_train": (0.101, None, 0.002, "lower"),
        "denoising_error_val": (0.102, None, 0.002, "lower"),
        "generalisation_gap": (0.015, 0.0, 0.015, "match"),
    },
    "conditioning": {
        "class_agreement": (0.92, 0.93, 0.015, "higher"),
        "class_balance_distance": (0.04, 0.035, 0.015, "lower"),
    },
}


def old_scores(split: str) -> dict[str, Any]:
    """A scores file as it was written before there were intervals."""
    rows = {
        "frechet_distance": (1.87, 0.713, "lower"),
        "kernel_distance": (0.0041, -0.00012, "lower"),
        "precision": (0.71, 0.804, "higher"),
        "recall": (0.66, 0.79, "higher"),
        "density": (0.93, 1.01, "higher"),
        "coverage": (0.61, 0.955, "higher"),
        "nearest_train_distance": (2.31, 2.19, "match"),
    }
    return {
        "split": split,
        "samples": 500,
        "images_seen": 400_000,
        "weights": "ema_0.100",
        "sampler": {"name": "heun", "steps": 18},
        "seed": 0,
        "features": {"name": "pixels", "digest": "f00dfeed" * 4, "dimensions": 64},
        "metrics": {
            name: {"value": value, "real": real, "n": [500, 180], "better": better}
            for name, (value, real, better) in rows.items()
        },
        "copying": {
            "samples": {"median": 2.31, "q05": 1.4, "q01": 1.1},
            "val": {"median": 2.19, "q05": 1.3, "q01": 1.0},
            "median_ratio": 1.05,
            "flagged": 0,
            "flagged_indices": [],
            "exact_duplicates": 0,
        },
        "warnings": ["180 reference images: scores are noisy"],
        "seconds": 12.3,
    }


def scores(split: str = "test", *, foreign: bool = False) -> dict[str, Any]:
    """A healthy record."""
    record = old_scores(split)
    if foreign:
        for key in ("images_seen", "weights", "sampler", "seed"):
            del record[key]
        record |= {"split": "all of the reference", "source": "out/samples"}
        record["reference_source"] = "photos"
    protocol = {"features": "pixels", "real_n": [500, 500]}
    record |= {
        "data": "ab12" * 16,
        "features": {**record["features"], "resizer": "none"},
        "warnings": [],
        "metrics": {
            name: {
                "value": value,
                "real": real,
                "low": None if error is None else value - 2 * error,
                "high": None if error is None else value + 2 * error,
                "n": [500, 500],
                "kind": kind,
                "better": better,
                "mark": "",
                "errors": {"samples": error, "reference": None},
                "protocol": protocol,
            }
            for kind, rows in _KINDS.items()
            for name, (value, real, error, better) in rows.items()
        },
        "per_class": [_of_class(name, i) for i, name in enumerate(CLASSES)],
        "classes": {
            "names": list(CLASSES),
            "probe_accuracy": 0.93,
            "usable": True,
            "note": "",
            "asked": [50] * 10,
            "predicted": [50 + (-1) ** i * 2 for i in range(10)],
            "expected": [0.1] * 10,
            "confusion": [[46 if i == j else (4 if j == (i + 1) % 10 else 0) for j in range(10)]
                          for i in range(10)],
            "missing": [],
            "overfull": [],
            "agreement": {"value": 0.92, "real": 0.93, "low": 0.89, "high": 0.95},
        },
        "groups": {"samples": [25] * 20, "reference": [25] * 20, "under": [], "over": []},
        "denoising": _denoising(0.01),
    }  # fmt: skip
    record["copying"] |= {
        "closest": [{"sample": 3, "train": 17, "distance": 0.9}],
        "flagged_train_indices": [],
        "detectable_from": 10,
        "q": 0.1,
        "share": 0.0,
        "share_low": 0.0,
        "share_high": 0.008,
    }
    return record


def put(record: dict[str, Any], name: str, value: float, low: float, high: float) -> None:
    """Give a metric another value and interval."""
    record["metrics"][name] |= {"value": value, "low": low, "high": high}


def copier() -> dict[str, Any]:
    """One sample in twelve is a training image; everything else is splendid."""
    record = scores()
    put(record, "frechet_distance", 0.62, 0.55, 0.7)
    put(record, "precision", 0.86, 0.82, 0.9)
    put(record, "copies", 0.082, 0.06, 0.11)
    put(record, "c_t", -7.7, -9.7, -5.7)
    put(record, "authentic", 0.586, 0.54, 0.63)
    put(record, "nearest_train_distance", 1.2, 1.1, 1.3)
    record["copying"] |= {
        "samples": {"median": 1.2, "q05": 0.0, "q01": 0.0},
        "median_ratio": 0.55,
        "flagged": 41,
        "flagged_indices": list(range(41)),
        "exact_duplicates": 12,
        "share": 0.082,
        "share_low": 0.06,
        "share_high": 0.11,
    }
    return record


def dropper() -> dict[str, Any]:
    """It never draws cats and dogs."""
    record = scores()
    gone = [CLASSES.index(name) for name in ("cat", "dog")]
    for i in gone:
        record["classes"]["predicted"][i] = 0
    record["classes"] |= {
        "missing": ["cat", "dog"],
        "asked": None,
        "confusion": None,
        "agreement": None,
    }
    del record["metrics"]["class_agreement"]
    put(record, "recall", 0.63, 0.57, 0.69)
    put(record, "coverage", 0.77, 0.73, 0.81)
    put(record, "vendi", 27.5, 26.0, 29.0)
    put(record, "class_balance_distance", 0.21, 0.18, 0.24)
    put(record, "groups_missed", 4, 4, 4)
    record["groups"] |= {"samples": [0] * 4 + [31] * 16, "under": [0, 1, 2, 3]}
    return record


def dropper_without_labels() -> dict[str, Any]:
    """The same where no classes are known."""
    record = dropper()
    record["classes"] = record["per_class"] = None
    del record["metrics"]["class_balance_distance"]
    return record


def blurred() -> dict[str, Any]:
    """Slightly blurred samples; they lie a little nearer to everything."""
    record = scores()
    put(record, "fine_detail", 0.71, 0.66, 0.76)
    put(record, "c_t", -4.1, -6.1, -2.1)
    return record


def noisy() -> dict[str, Any]:
    """Noise is left in the samples."""
    record = scores()
    put(record, "fine_detail", 1.4, 1.3, 1.5)
    return record


def confused() -> dict[str, Any]:
    """Every second cat and dog is something else; others are right too seldom."""
    record = scores()
    put(record, "class_agreement", 0.61, 0.56, 0.66)
    record["classes"]["agreement"] = {"value": 0.61, "real": 0.93, "low": 0.56, "high": 0.66}
    record["classes"]["confusion"][3] = [0, 0, 0, 5, 0, 45, 0, 0, 0, 0]
    return record


def memoriser() -> dict[str, Any]:
    """Knows its training images by heart, and has not begun to draw them."""
    record = scores()
    put(record, "generalisation_gap", 0.48, 0.3, 0.66)
    record["denoising"] = _denoising(0.48)
    return record


def monotonous() -> dict[str, Any]:
    """Good images, and always the same few."""
    record = scores()
    put(record, "recall", 0.41, 0.35, 0.47)
    put(record, "coverage", 0.6, 0.56, 0.64)
    put(record, "vendi", 19.0, 18.0, 20.0)
    return record


def ugly() -> dict[str, Any]:
    """Samples that do not look like real images."""
    record = scores()
    put(record, "frechet_distance", 5.1, 4.6, 5.6)
    put(record, "kernel_distance", 0.031, 0.028, 0.034)
    put(record, "precision", 0.42, 0.37, 0.47)
    return record


def uncertain() -> dict[str, Any]:
    """The healthy one with so few images that nothing is certain."""
    record = copy.deepcopy(scores())
    for row in record["metrics"].values():
        row |= {"n": [60, 60], "mark": "Only 60 samples: below 100 the figure is mostly chance."}
    for name, value in (("precision", 0.6), ("recall", 0.5), ("coverage", 0.8)):
        put(record, name, value, value - 0.25, value + 0.25)
    return record


def snapshots() -> list[dict[str, Any]]:
    """scores.jsonl."""
    rows = []
    for i in range(1, 9):
        for weights, gain in (("raw", 1.4), ("ema_0.100", 1.0)):
            values = {
                "frechet_distance": gain * (0.7 + 20 / i**2),
                "kernel_distance": gain * 0.02 / i,
                "precision": 0.8 - 0.5 / i,
                "recall": 0.78 - 0.6 * gain / (i + 1),
                "density": 1 - 0.5 / i,
                "coverage": 0.95 - 0.5 / i,
                "fine_detail": 1 - 0.4 / i,
                "nearest_train_distance": 2.2 + 1 / i,
            }
            real = {name: row[1] for kind in _KINDS.values() for name, row in kind.items()}
            rows.append(
                {
                    "images_seen": i * 50_000,
                    "weights": weights,
                    "samples": 200,
                    "values": values,
                    "errors": dict.fromkeys(values, 0.01),
                    "real": {name: real[name] for name in values},
                    "copies": 2 if i > 6 else 0,
                }
            )
    return rows


def tradeoff() -> dict[str, Any]:
    """tradeoff.json: stronger guidance, more precision, less recall."""
    rows = [
        {
            "strength": strength,
            "std": std,
            "weights": "raw" if std is None else f"ema_{std:.3f}",
            "values": {
                "frechet_distance": 1 + (strength - 1.6) ** 2 + loss,
                "precision": 0.6 + 0.12 * strength - loss / 5,
                "recall": 0.85 - 0.15 * strength - loss / 5,
                "density": 0.8 + 0.2 * strength,
                "coverage": 0.9 - 0.1 * (strength - 1.5) ** 2 - loss / 5,
            },
        }
        for std, loss in ((None, 0.3), (0.05, 0.0), (0.1, 0.1))
        for strength in (1.0, 1.5, 2.0, 3.0)
    ]
    real = {"precision": 0.804, "recall": 0.79, "density": 1.01, "coverage": 0.955}
    real["frechet_distance"] = 0.713
    return {"features": "pixels", "samples": 300, "rows": rows, "real": real}


def comparison() -> dict[str, Any]:
    """comparison.json: the second run is better in distance and worse in recall."""

    def row(better: str, real: float, both: list[float], clear: bool) -> dict[str, Any]:
        error = 0.05 * abs(both[0])
        values = [{"value": v, "low": v - error, "high": v + error} for v in both]
        change = both[1] - both[0]
        difference = {"value": change, "low": change - error, "high": change + error}
        differences = [None, {**difference, "clear": clear}]
        return {"better": better, "real": real, "values": values, "differences": differences}

    return {
        "names": ["runs/a", "runs/b"],
        "features": {"name": "pixels", "digest": "f00dfeed", "dimensions": 64},
        "split": "val",
        "samples": 500,
        "seed": 7,
        "metrics": {
            "frechet_distance": row("lower", 0.713, [2.3, 1.5], True),
            "kernel_distance": row("lower", -0.0001, [0.004, 0.0038], False),
            "precision": row("higher", 0.8, [0.71, 0.72], False),
            "recall": row("higher", 0.79, [0.7, 0.6], True),
            "fine_detail": row("match", 0.99, [1.3, 1.05], True),
        },
        "warnings": ["500 samples of each run"],
    }


def _of_class(name: str, i: int) -> dict[str, Any]:
    def row(value: float, real: float, error: float) -> dict[str, float]:
        return {"value": value, "real": real, "low": value - error, "high": value + error}

    return {
        "name": name,
        "samples": 50,
        "reference": 50,
        "metrics": {
            "kernel_distance": row(0.001 * i, 0.0, 0.003),
            "precision": row(0.78, 0.8, 0.1),
            "recall": row(0.76, 0.78, 0.1),
            "coverage": row(0.9, 0.93, 0.06),
        },
        "mark": "",
    }


def _denoising(excess: float) -> dict[str, Any]:
    """The gap is at three low noise levels, largest at 0.2; elsewhere it is chance."""
    shape = (0.1, 0.5, 1.0, 0.4, 0.0, 0.0, 0.0)
    curves: dict[str, list[dict[str, float]]] = {"train": [], "val": []}
    gap = []
    for sigma, part in zip(SIGMAS, shape, strict=True):
        error = sigma**2 / (1 + sigma**2) / 3
        for split, times in (("train", 1.0), ("val", 1 + excess * part)):
            row = {"sigma": sigma, "mse": error * times, "psnr": 30 - 5 * sigma, "ssim": 0.9}
            curves[split].append({**row, "mse_error": 0.02 * error})
        width = 0.02 + 0.36 * excess * part
        gap.append(
            {
                "sigma": sigma,
                "ratio": excess * part,
                "low": excess * part - width,
                "high": excess * part + width,
                "significant": excess * part > 0.15,
            }
        )
    return {
        "sigmas": list(SIGMAS),
        "curves": curves,
        "baseline": [s**2 / (1 + s**2) for s in SIGMAS],
        "gap": gap,
        "largest": gap[2],
    }
