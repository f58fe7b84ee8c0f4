"""Contact sheets: small pictures with their names, to be judged at a glance on a phone or a desk.

Every picture is an element of its own and not a part of one large sheet: names can be read and
copied, and the grid fits any width.
"""

import base64
import io
import zipfile
import zlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from PIL import Image

from poise.audit.scan import Scan
from poise.data.decode import decode
from poise.errors import DataError
from poise.report.page import Html, join, text, visible

STYLE = """
.sheet{display:grid;gap:.9rem .7rem;grid-template-columns:repeat(auto-fill,minmax(104px,1fr));
margin:.7rem 0}
.tile{margin:0;break-inside:avoid}
.tile img,.tile .none{width:100%;aspect-ratio:1;object-fit:contain;background:var(--tint)}
.tile figcaption{font-size:.75rem;line-height:1.3;margin-top:.25rem}
.tile figcaption b,.tile figcaption span{display:block;unicode-bidi:isolate}
.tile .name{display:-webkit-box;-webkit-box-orient:vertical;-webkit-line-clamp:4;overflow:hidden}
.tile .about{color:var(--ink)}
.tile.flagged img{outline:2px solid var(--weak);outline-offset:1px}
.tile b{color:var(--weak);font-weight:600}
.groups{display:grid;gap:1rem 1.4rem;margin:1.2rem 0 .7rem;
grid-template-columns:repeat(auto-fill,minmax(min(100%,235px),1fr))}
.group{border-top:1px solid var(--line);padding-top:.4rem;min-width:0;break-inside:avoid}
.group p{margin:0 0 .4rem;font-size:.85rem;line-height:1.35}
.group .sheet{margin:0;grid-template-columns:repeat(var(--columns),minmax(0,160px))}
@media (min-width:560px){.groups{grid-auto-flow:dense}.group.many{grid-column:span 2}}
@media print{.sheet{grid-template-columns:repeat(6,1fr)}}
"""
_SIDE = 160  # longest side of a picture on the page, in pixels
_TINY = 48  # pictures up to this side keep their pixels and are enlarged without smoothing
_DETAIL = 512  # for judging sharpness: the middle of the picture at this shortest side or below
_FILES = 400  # most files read again for one page
_MEMBERS = 4  # most pictures of one group
_PIXELS = 1_000_000_000  # most pixels decoded again: about ten seconds
_READING = (OSError, ValueError, EOFError, RuntimeError, zipfile.BadZipFile, zlib.error, DataError)


@dataclass(frozen=True)
class Tile:
    """One picture with what is said below it."""

    path: str
    note: str = ""
    flagged: bool = False
    detail: bool = False  # show the middle of the picture instead of all of it


class Album:
    """The pictures of a scan by their paths, read again while the allowance lasts."""

    def __init__(self, scan: Scan) -> None:
        self._scan = scan
        self._index = {item.name: i for i, item in enumerate(scan.source.items)}
        self._drawn: dict[tuple[int, bool], Html] = {}
        self._files, self._pixels = _FILES, _PIXELS

    def index(self, path: str) -> int | None:
        """The item with this path, None if there is none or it has no picture."""
        i = self._index.get(path)
        return None if i is None or self._scan.looks[i].broken else i

    def about(self, path: str) -> str:
        """Class and given split, as far as there are any."""
        return ", ".join(part for part in (self.class_of(path), self.split_of(path)) if part)

    def class_of(self, path: str) -> str:
        """The name of the class, empty without one."""
        i = self._index.get(path)
        label = None if i is None else self._scan.source.items[i].label
        return "" if label is None else self._scan.source.label_names[label]

    def split_of(self, path: str) -> str:
        """The split that was given, empty without one."""
        i = self._index.get(path)
        return "" if i is None else self._scan.source.items[i].split or ""

    def draw(self, path: str, detail: bool = False) -> Html:
        """The picture as an `img`; a blank for what has no picture."""
        i = self.index(path)
        if i is None:
            return Html('<div class="none"></div>')
        if (i, detail) not in self._drawn:
            self._drawn[i, detail] = self._element(i, detail)
        return self._drawn[i, detail]

    def _element(self, i: int, detail: bool) -> Html:
        image = self._again(i)
        if image is None:
            image = self._from_thumbnail(i)
        elif detail:
            image = _middle(image)
        if max(image.size) > _TINY:
            image.thumbnail((_SIDE, _SIDE), Image.Resampling.LANCZOS)
        pixels = ' class="pixels"' if max(image.size) <= _TINY else ""
        name = text(visible(self._scan.source.items[i].name))
        return Html(
            f'<img{pixels} width="{image.width}" height="{image.height}" loading="lazy" '
            f'src="{uri(image)}" alt="{name}">'
        )

    def _again(self, i: int) -> Image.Image | None:
        """The picture in full; None where only the thumbnail can be had."""
        look = self._scan.looks[i]
        cost = look.width * look.height
        if self._files < 1 or self._pixels < cost:
            return None
        self._files, self._pixels = self._files - 1, self._pixels - cost
        try:
            content = self._scan.source.read(i)
            if isinstance(content, bytes):
                return decode(content).image
        except _READING:  # gone or changed since the scan
            return None
        if content.ndim == 3 and content.shape[2] == 1:
            content = content[..., 0]
        plain = content.ndim == 2 or content.shape[2] == 3
        return Image.fromarray(content) if plain and content.dtype == "uint8" else None

    def _from_thumbnail(self, i: int) -> Image.Image:
        """The squeezed thumbnail of the scan in its picture's own proportions."""
        look, image = self._scan.looks[i], Image.fromarray(self._scan.thumbs[i])
        longest = max(look.width, look.height, 1)
        side = longest if longest <= _TINY else 64
        size = (
            max(1, round(side * look.width / longest)),
            max(1, round(side * look.height / longest)),
        )
        return image.resize(size, Image.Resampling.BICUBIC)


def uri(image: Image.Image) -> str:
    """The picture inside an address: exact where it is tiny, compressed where it is not."""
    stream = io.BytesIO()
    exact = max(image.size) <= _TINY
    image.save(stream, "WEBP", lossless=exact, quality=80, method=4)
    return "data:image/webp;base64," + base64.b64encode(stream.getvalue()).decode("ascii")


def sheet(album: Album, tiles: Iterable[Tile]) -> Html:
    """Pictures in a grid."""
    return Html(f'<div class="sheet">{join(_tile(album, tile) for tile in tiles)}</div>')


def group(album: Album, head: Html, paths: Sequence[str]) -> Html:
    """Pictures that belong together, side by side under `head`; a few of them are drawn."""
    shown = spread_out(album, paths, _MEMBERS)
    more = len(paths) - len(shown)
    rest = f'<p class="soft">and {more:,} more</p>' if more else ""
    kind = "group many" if len(shown) > 2 else "group"
    tiles = sheet(album, (Tile(path, album.about(path)) for path in shown))
    columns = max(2, len(shown))
    return Html(f'<div class="{kind}" style="--columns:{columns}"><p>{head}</p>{tiles}{rest}</div>')


def groups(parts: Iterable[Html]) -> Html:
    """Groups in as many columns as fit."""
    return Html(f'<div class="groups">{join(parts)}</div>')


def spread_out(album: Album, paths: Sequence[str], most: int) -> list[str]:
    """At most `most` of `paths`, first one of every class and split, so that a conflict shows."""
    first: dict[tuple[str, str], str] = {}
    for path in paths:
        first.setdefault((album.class_of(path), album.split_of(path)), path)
    chosen = list(first.values())
    known = set(chosen)
    return [*chosen, *[path for path in paths if path not in known]][:most]


def _tile(album: Album, tile: Tile) -> Html:
    flagged = "<b>flagged</b>" if tile.flagged else ""
    # A name is broken after its folders before it is broken anywhere else.
    name = text(visible(tile.path)).replace("/", "/<wbr>")
    note = f'<span class="about">{text(visible(tile.note))}</span>' if tile.note else ""
    kind = "tile flagged" if tile.flagged else "tile"
    return Html(
        f'<figure class="{kind}">{album.draw(tile.path, tile.detail)}<figcaption>{flagged}{note}'
        f'<span class="name">{name}</span></figcaption></figure>'
    )


def _middle(image: Image.Image) -> Image.Image:
    """The centre square of `_SIDE` pixels, of a picture made no smaller than `_DETAIL`."""
    shortest = min(image.size)
    if shortest > _DETAIL:
        size = (
            round(image.width * _DETAIL / shortest),
            round(image.height * _DETAIL / shortest),
        )
        image = image.resize(size, Image.Resampling.LANCZOS, reducing_gap=2.0)
    side = min(_SIDE, *image.size)
    left, top = (image.width - side) // 2, (image.height - side) // 2
    return image.crop((left, top, left + side, top + side))
