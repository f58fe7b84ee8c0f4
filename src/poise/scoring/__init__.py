"""What samples are worth: those of a run, of a snapshot while it trains, or of anybody."""

from poise.scoring.run import (
    check_features,
    evaluate,
    fitting_count,
    labels_like,
    real_of,
    scoring_seconds,
    settings_afterwards,
)

__all__ = [
    "check_features",
    "evaluate",
    "fitting_count",
    "labels_like",
    "real_of",
    "scoring_seconds",
    "settings_afterwards",
]
