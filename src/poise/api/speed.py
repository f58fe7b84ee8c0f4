"""What `poise bench` measures, as plain data and as a table."""

from collections.abc import Mapping
from typing import Any

from poise.artifacts import DataFacts
from poise.bench.bench import bench
from poise.bench.scores import bench_scores, score_table
from poise.bench.table import table
from poise.config import preset_named, resolve
from poise.console import Screen
from poise.prepare import bench as data_bench
from poise.prepare import bench_table as data_table


def measure_speed(
    preset: str, resolution: int, settings: Mapping[str, Any], *, compiled: bool
) -> tuple[dict[str, Any], str]:
    """What `poise bench` prints, as plain data and as a table, for RGB images of ten classes."""
    config = resolve(preset_named(preset), settings)
    facts = DataFacts(resolution, 3, tuple(str(i) for i in range(10)), 0.5)
    screen = Screen(quiet=False)
    with screen.bar("measuring", 1) as bar:
        result = bench(config, facts, compiled=compiled, progress=bar.show)
    return result, table(result)


def measure_score_speed() -> tuple[dict[str, Any], str]:
    """What `poise bench scores` prints: metrics beside the arithmetic that they cannot avoid."""
    with Screen(quiet=False).bar("measuring", 1) as bar:
        result = bench_scores(progress=bar.show)
    return result, score_table(result)


def measure_data_speed(source: str) -> tuple[dict[str, Any], str]:
    """What `poise bench data` prints: how fast images are read, decoded, resized, stored and fed.

    Raises:
        UsageError: there is no such source.
        DataError: no image of it can be read.
    """
    with Screen(quiet=False).bar("measuring", 1) as bar:
        result = data_bench.measure(source, progress=bar.show)
    return result, data_table.table(result)
