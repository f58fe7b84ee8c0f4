"""HTML: escaping, tables, figures, the shell and its style. The type `Html` marks escaped text."""

import json
import unicodedata
from collections.abc import Iterable, Sequence
from html import escape
from typing import NewType

from poise.report.figures import Figure, is_empty
from poise.report.pictures import Picture

Html = NewType("Html", str)

# Nothing outside the file can be fetched, whatever a hostile name might smuggle in.
_POLICY = "default-src 'none'; img-src data: blob:; style-src 'unsafe-inline'"
_POLICY_WITH_FIGURES = _POLICY + "; script-src 'unsafe-inline'"
_JOINERS = "\u200c\u200d"  # Persian words and some emoji need them

_STYLE = """
:root{color-scheme:light dark;--paper:#fff;--ink:#1f2328;--soft:#5b636c;--line:#dcdfe3;
--tint:#f5f6f7;--bad:#a93226;--weak:#8f5f00;--good:#2d6a3f}
@media screen and (prefers-color-scheme:dark){:root{--paper:#15171a;--ink:#e4e6e8;--soft:#9aa1a9;
--line:#33383e;--tint:#1d2024;--bad:#ec8a7f;--weak:#dcb25c;--good:#83c596}}
*{box-sizing:border-box}
html{-webkit-text-size-adjust:100%}
body{margin:0 auto;max-width:1100px;padding:28px 16px 72px;background:var(--paper);
color:var(--ink);font:16px/1.55 system-ui,-apple-system,"Segoe UI",Roboto,sans-serif;
overflow-wrap:anywhere}
h1{font-size:1.75rem;line-height:1.2;margin:0 0 .4rem;font-weight:650}
h2{font-size:1.25rem;margin:3rem 0 .6rem;padding-top:.7rem;border-top:1px solid var(--line);
font-weight:650}
h3{font-size:1rem;margin:1.6rem 0 .3rem;font-weight:600}
p{margin:.5rem 0;max-width:46rem}
.lead{font-size:1.1rem}.soft,figcaption,.note,.absent{color:var(--soft)}
figcaption,.note{font-size:.875rem;line-height:1.45;max-width:46rem;margin-top:.3rem}
nav{margin:1.1rem 0 0;font-size:.9rem;line-height:2}nav a{margin-right:1rem;white-space:nowrap}
a{color:inherit;text-underline-offset:.2em;text-decoration-color:var(--soft)}
ul.verdict{list-style:none;margin:.6rem 0;padding:0;max-width:50rem}
ul.verdict li{display:flex;gap:.9rem;padding:.45rem 0;border-bottom:1px solid var(--line)}
ul.verdict b{flex:0 0 3.6rem;font-size:.8rem;line-height:1.9;font-weight:600}
ul.verdict code{display:block;width:fit-content;max-width:100%;margin-top:.2rem}
ol.steps{margin:.6rem 0;padding-left:1.5rem;max-width:50rem}
ol.steps li{padding:.35rem 0}ol.steps b{font-weight:600}ol.steps span{color:var(--soft)}
ol.steps code{display:block;width:fit-content;max-width:100%;margin-top:.2rem}
code{background:var(--tint);padding:.1rem .4rem;border-radius:3px;font-size:.85rem;
user-select:all;-webkit-user-select:all;overflow-wrap:anywhere}
.s0{color:var(--bad)}.s1{color:var(--weak)}.s2{color:var(--soft)}.s3{color:var(--good)}
dl{max-width:46rem;margin:.6rem 0}dt{margin-top:.9rem}
dd{margin:.15rem 0 0;padding-left:.9rem;border-left:2px solid var(--line);color:var(--soft)}
.scroll{overflow-x:auto;margin:.7rem 0;max-width:100%}
table{border-collapse:collapse;font-size:.9rem;line-height:1.4;font-variant-numeric:tabular-nums}
th,td{text-align:left;vertical-align:top;padding:.35rem .9rem .35rem 0;
border-bottom:1px solid var(--line);overflow-wrap:normal}
th{font-weight:600;color:var(--soft);white-space:nowrap}
td.n,th.n{text-align:right;white-space:nowrap}
td.n{white-space:pre}
.shaded td,.shaded th{padding:.2rem .35rem;border:1px solid var(--line);text-align:right}
.shaded td{min-width:2.1rem}.shaded th[scope=row]{text-align:left}
.h1{background:rgba(74,95,193,0.08)}.h2{background:rgba(74,95,193,0.16)}.h3{background:rgba(74,95,193,0.24)}.h4{background:rgba(74,95,193,0.32)}.h5{background:rgba(74,95,193,0.40)}.h6{background:rgba(74,95,193,0.48)}.h7{background:rgba(74,95,193,0.56)}.h8{background:rgba(74,95,193,0.64)}.h9{background:rgba(74,95,193,0.72)}
td.w{min-width:17rem;overflow-wrap:anywhere}
td.t{min-width:6rem;overflow-wrap:break-word}
figure{margin:1rem 0;min-width:0}
.plot{height:320px;width:100%}.plot.tall{height:430px}
.plot,.plot *{touch-action:auto!important}
img{display:block;max-width:100%;height:auto;background:var(--tint)}
img.pixels{image-rendering:pixelated}
img.large{width:100%;max-width:720px}img.small{width:100%}
.pair,.grids{display:grid;gap:0 28px;grid-template-columns:minmax(0,1fr)}
.grids{grid-template-columns:repeat(auto-fill,minmax(min(150px,45%),1fr));gap:0 16px}
@media (max-width:560px){table.tnnw,.tnnw thead,.tnnw tbody{display:block}
.tnnw tr{display:grid;column-gap:.5rem;grid-template-columns:1fr 9rem 6rem;
border-bottom:1px solid var(--line)}
.tnnw td,.tnnw th{border:0;padding-right:0}.tnnw th.w{display:none}
.tnnw td.w{grid-column:1/-1;color:var(--soft);padding-top:0}}
@media (min-width:760px){.pair{grid-template-columns:repeat(2,minmax(0,1fr))}}
details{margin:.7rem 0}summary{cursor:pointer}
pre{overflow-x:auto;background:var(--tint);padding:.7rem;font-size:.85rem;line-height:1.45}
@page{margin:14mm}
@media print{body{max-width:none;padding:0;font-size:10.5pt;color-scheme:light}
nav,.modebar{display:none!important}
figure,tr,li,h2+p,dt,dd{break-inside:avoid}dt,h1,h2,h3{break-after:avoid}.scroll{overflow:visible}
h2{margin-top:1.6rem}td.w{min-width:0}
.plot{height:auto!important;width:auto!important}.pair{grid-template-columns:1fr 1fr;gap:0 16px}
img.large{max-width:420px}}
"""

_DRAW = """
(function () {
  var fine = window.matchMedia('(pointer: fine)').matches;
  var boxes = [].slice.call(document.querySelectorAll('.plot'));
  boxes.forEach(function (box) {
    var figure = JSON.parse(box.nextElementSibling.textContent);
    if (fine) {
      figure.layout.dragmode = 'zoom';
      figure.layout.xaxis.fixedrange = figure.layout.yaxis.fixedrange = false;
    }
    Plotly.newPlot(box, figure.data, figure.layout,
      {displayModeBar: false, responsive: true, scrollZoom: false});
  });
  // Paper has its own width, known only here: half and whole lines of A4 or Letter.
  window.addEventListener('beforeprint', function () {
    boxes.forEach(function (box) {
      var half = box.closest('.pair');
      Plotly.relayout(box, {width: half ? 325 : 670, height: half ? 260 : 340});
    });
  });
  window.addEventListener('afterprint', function () {
    boxes.forEach(function (box) {
      Plotly.relayout(box, {width: null, height: null, autosize: true});
    });
  });
})();
"""


def text(value: object) -> Html:
    """Any text, made safe."""
    return Html(escape(str(value), quote=True))


def visible(value: object, most: int = 300) -> str:
    """A name as it is, with what cannot be seen written out, so that it can be told from others.

    Control characters, marks that turn the direction of writing and bytes that are not UTF-8
    appear as `\\u202e`; of a name longer than `most` characters the middle is left out.
    """
    words = str(value)
    if len(words) > most:
        words = f"{words[: most // 2]} … {words[-(most // 2) :]}"
    return words if words.isprintable() else "".join(_written_out(sign) for sign in words)


def _written_out(sign: str) -> str:
    hidden = unicodedata.category(sign) in ("Cc", "Cf", "Cs", "Zl", "Zp") and sign not in _JOINERS
    return f"\\u{ord(sign):04x}" if hidden else sign


def join(parts: Iterable[Html]) -> Html:
    """Pieces one after the other."""
    return Html("\n".join(part for part in parts if part))


def paragraph(words: str, kind: str = "") -> Html:
    """A paragraph; nothing for no words."""
    mark = f' class="{escape(kind)}"' if kind else ""
    return Html(f"<p{mark}>{text(words)}</p>" if words else "")


def absent(words: str) -> Html:
    """What is not there, said in words."""
    return paragraph(words, "absent")


def heading(words: str) -> Html:
    """A heading inside a section."""
    return Html(f"<h3>{text(words)}</h3>")


def section(anchor: str, title: str, parts: Iterable[Html]) -> Html:
    """A section of the page that the contents can point to."""
    return Html(f'<section id="{text(anchor)}">\n<h2>{text(title)}</h2>\n{join(parts)}\n</section>')


def contents(sections: Iterable[tuple[str, str]]) -> Html:
    """Links to (anchor, title)."""
    links = [f'<a href="#{text(anchor)}">{text(title)}</a>' for anchor, title in sections]
    return Html("<nav>" + "\n".join(links) + "</nav>")


def sectioned(head: Iterable[Html], sections: Sequence[tuple[str, str, list[Html]]]) -> Html:
    """What stands above, links to the sections (anchor, title, parts), and the sections."""
    links = contents((anchor, title) for anchor, title, _ in sections)
    return join(
        [*head, links, *[section(anchor, title, parts) for anchor, title, parts in sections]]
    )


def table(headers: Sequence[str], rows: Iterable[Sequence[str]], kinds: str) -> Html:
    """A table in a box that scrolls by itself.

    Args:
        headers: one per column.
        rows: plain text; it is escaped here.
        kinds: one letter per column: n number, t text, w wide text.
    """
    head = "".join(
        f'<th scope="col" class="{kind}">{text(name)}</th>'
        for name, kind in zip(headers, kinds, strict=True)
    )
    body = "\n".join(
        "<tr>"
        + "".join(
            f'<td class="{kind}">{text(cell)}</td>' for cell, kind in zip(row, kinds, strict=True)
        )
        + "</tr>"
        for row in rows
    )
    return Html(
        f'<div class="scroll" tabindex="0" role="region" aria-label="{text(headers[0])}">'
        f'<table class="{text(kinds)}"><thead><tr>{head}</tr></thead>\n'
        f"<tbody>{body}</tbody></table></div>"
    )


def shaded(headers: Sequence[str], names: Sequence[str], shares: Sequence[Sequence[float]]) -> Html:
    """A table of percentages whose cells are the darker, the larger they are.

    Args:
        headers: of the column of names, then of each share.
        names: one per row.
        shares: of 1, [rows, columns]; less than half a percent is left blank.
    """
    head = "".join(f'<th scope="col">{text(name)}</th>' for name in headers)
    body = "\n".join(
        f'<tr><th scope="row">{text(name)}</th>'
        + "".join(
            f'<td class="h{min(9, int(10 * part))}">{f"{100 * part:.0f}" if part >= 0.005 else ""}'
            "</td>"
            for part in row
        )
        + "</tr>"
        for name, row in zip(names, shares, strict=True)
    )
    return Html(
        f'<div class="scroll" tabindex="0" role="region" aria-label="{text(headers[0])}">'
        f'<table class="shaded"><thead><tr>{head}</tr></thead>\n<tbody>{body}</tbody></table></div>'
    )


def note(words: str) -> Html:
    """A sentence in small grey letters, as under a figure."""
    return paragraph(words, "note")


def verdict(lines: Iterable[tuple[int, str, str]], commands: Iterable[str] = ()) -> Html:
    """Findings as (severity 0 worst to 3, its word, sentence); the command under each, if any."""
    lines = list(lines)
    given = list(commands) or [""] * len(lines)
    rows = [
        f'<li><b class="s{severity}">{text(word)}</b><span>{text(sentence)}'
        + (f" <code>{text(command)}</code>" if command else "")
        + "</span></li>"
        for (severity, word, sentence), command in zip(lines, given, strict=True)
    ]
    return Html('<ul class="verdict">' + "\n".join(rows) + "</ul>")


def advice(rows: Iterable[tuple[str, str]]) -> Html:
    """What was found, and under it what to do."""
    lines = [f"<dt>{text(found)}</dt><dd>{text(remedy)}</dd>" for found, remedy in rows]
    return Html("<dl>" + "\n".join(lines) + "</dl>")


def steps(rows: Iterable[tuple[str, str, str]]) -> Html:
    """What to do, in order, as (why, what, command); the command may be empty."""
    lines = [
        f"<li><b>{text(what)}</b> <span>{text(why)}</span>"
        + (f" <code>{text(command)}</code>" if command else "")
        + "</li>"
        for why, what, command in rows
    ]
    return Html('<ol class="steps">' + "\n".join(lines) + "</ol>")


def plot(title: str, figure: Figure, caption: str) -> Html:
    """A figure with its heading and the sentence that says how to read it."""
    if is_empty(figure):
        return join([heading(title), absent("There are no finite values to draw yet.")])
    tall = " tall" if len(figure["data"]) > 4 else ""
    # "<" would let a name end the script element; JSON has another way to write it.
    data = json.dumps(figure, sort_keys=True, allow_nan=False, separators=(",", ":"))
    return Html(
        f'<figure><h3>{text(title)}</h3><div class="plot{tall}" role="img" '
        f'aria-label="{text(title)}"></div>'
        f'<script type="application/json">{data.replace("<", chr(92) + "u003c")}</script>\n'
        f"<figcaption>{text(caption)}</figcaption></figure>"
    )


def pair(parts: Iterable[Html]) -> Html:
    """Figures side by side where there is room."""
    return Html(f'<div class="pair">{join(parts)}</div>')


def picture(image: Picture, size: str, alternative: str, caption: str) -> Html:
    """An image with its caption; `size` is `large` or `small`."""
    pixels = " pixels" if image.width < 400 else ""
    note = " Shown compressed; the file in the run folder is exact." if image.reduced else ""
    return Html(
        f'<figure><img class="{text(size)}{pixels}" width="{image.width}" height="{image.height}" '
        f'src="{image.uri}" alt="{text(alternative)}">'
        f"<figcaption>{text(caption + note)}</figcaption></figure>"
    )


def grids(parts: Iterable[Html]) -> Html:
    """Small pictures in a row."""
    return Html(f'<div class="grids">{join(parts)}</div>')


def details(summary: str, parts: Iterable[Html]) -> Html:
    """Something to open."""
    return Html(f"<details><summary>{text(summary)}</summary>\n{join(parts)}</details>")


def code(words: str) -> Html:
    """Text as it was typed."""
    return Html(f"<pre>{text(words)}</pre>")


def document(title: str, body: Html, *, style: str = "", figures: bool = True) -> bytes:
    """The whole page.

    Args:
        title: plain text.
        body: what is between the first and the last line.
        style: CSS after the page's own.
        figures: whether `plot` was used; without, the page holds no script and allows none.
    """
    page = f"""<!doctype html>
<html lang="en"><head><meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="{_POLICY_WITH_FIGURES if figures else _POLICY}">
<meta name="viewport" content="width=device-width,initial-scale=1">
<title>{text(title)}</title>
<style>{_STYLE}{style}</style></head>
<body>
{body}
{_scripts() if figures else ""}</body></html>
"""
    # File names that are not UTF-8 arrive as lone surrogates, which no encoder takes.
    return page.encode("utf-8", errors="replace")


def _scripts() -> str:
    from plotly.offline import get_plotlyjs  # 5 MB of text, wanted only here

    return f"""<noscript><p>The figures of this page need JavaScript; tables and pictures do not.\
</p></noscript>
<script>{get_plotlyjs()}</script>
<script>{_DRAW}</script>
"""
