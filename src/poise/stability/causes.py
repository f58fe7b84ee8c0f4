"""All causes that Poise names: one vocabulary for events, doctor, report, drill and guide."""

from collections.abc import Collection

from poise.stability.cause import Cause
from poise.stability.chapters import data, machine, network, progress, updates

__all__ = ["CAUSES", "Cause", "guide", "title"]

_CHAPTERS = (updates, data, network, progress, machine)
CAUSES: dict[str, Cause] = {cause.name: cause for chapter in _CHAPTERS for cause in chapter.CHAPTER}


def title(name: str) -> str:
    """The title of a cause; other kinds of events give their own name, in words."""
    known = CAUSES.get(name)
    return known.title if known else name.replace("_", " ").replace("-", " ").capitalize()


def guide(figures: Collection[str] = ()) -> str:
    """The sections of docs/guides/when-training-goes-wrong.md, Markdown, one for each cause.

    Args:
        figures: the causes that docs/figures/drill-CAUSE.svg shows.
    """
    parts = []
    for chapter in _CHAPTERS:
        parts.append(f"## {chapter.TITLE}\n")
        parts += [_section(cause, cause.name in figures) for cause in chapter.CHAPTER]
    return "\n".join(parts)


def _section(cause: Cause, drawn: bool) -> str:
    figure = f"\n![{cause.title}](../figures/drill-{cause.name}.svg)\n" if drawn else ""
    return f"""### {cause.name}

**{cause.title}.**
{figure}
- What it looks like: {cause.looks}
- Why: {cause.why}
- What Poise does: {cause.does}
- What you can do: {cause.do}
"""
