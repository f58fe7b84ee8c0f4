"""What stands out among the files of a data set when a training reads them."""

from collections.abc import Iterator

from poise.data.imageset import Dataset
from poise.stability.incident import Incident, Sign

_NAMED = 12
_PLAIN = frozenset(("L", "RGB"))


def file_incidents(dataset: Dataset) -> Iterator[Incident]:
    """Files that could not be read, and kinds of images that were converted to one."""
    if dataset.unreadable:
        names = [file.name for file in dataset.unreadable]
        reasons = [f"{file.name} ({file.reason})" for file in dataset.unreadable]
        total = len(dataset) + len(names)
        more = f" and {len(names) - 3} more" if len(names) > 3 else ""
        yield Incident(
            Sign(
                "corrupt-files",
                "warning",
                0,
                0,
                f"{len(names)} of {total:,} files cannot be read and are left out: "
                f"{', '.join(reasons[:3])}{more}.",
                {"files": len(names), "of": total, "reasons": reasons[:_NAMED]},
                {"files": names[:_NAMED]},
            ),
            "leave-out",
            {"images": len(names)},
        )
    if len(dataset.modes) > 1 and not _PLAIN.issuperset(dataset.modes):
        counts = ", ".join(f"{count:,} {mode}" for mode, count in dataset.modes.items())
        into = "grey" if dataset.channels == 1 else "RGB"
        yield Incident(
            Sign(
                "mixed-files",
                "warning",
                0,
                0,
                f"The images are of several kinds ({counts}); all are converted to 8-bit {into}.",
                {"modes": dict(dataset.modes)},
            ),
            "convert",
        )
