"""The parts of a self-contained web page: escaped text, sections, tables, inline plots. `page.html` is the frame.

A page has no script, its plots are inline, and its content security policy lets it load nothing.
"""

import base64
import io
import re
from collections.abc import Sequence
from html import escape
from importlib.resources import files

from matplotlib.figure import Figure

from tsdfm.jobs.shell.console import CONTROLS

DPI = 144


def page(title: str, facts: Sequence[str], headline: Sequence[str], sections: Sequence[str]) -> str:
    """A whole page. `sections` is HTML, all else plain text; empty sections are left out."""
    parts = {"TITLE": text(title), "FACTS": text(" · ".join(facts)),
             "HEADLINE": "\n".join(f"<p>{text(line)}</p>" for line in headline),
             "SECTIONS": "\n".join(each for each in sections if each)}
    frame = files("tsdfm.jobs.shell").joinpath("page.html").read_text(encoding="utf-8")
    return re.sub(r"__([A-Z]+)__", lambda place: parts[place[1]], frame)  # one pass: nothing put in is ever replaced


def text(plain: str) -> str:
    """Text as HTML."""
    return escape(plain.translate(CONTROLS))


def section(title: str, content: str) -> str:
    """A section of HTML."""
    return f"<section>\n<h2>{text(title)}</h2>\n{content}\n</section>"


def table(caption: str, head: Sequence[str], rows: Sequence[Sequence[str]], marked: Sequence[bool] = ()) -> str:
    """A table of plain texts that scrolls by itself; the first cell of a row is its heading, and `marked` rows are bold."""
    top = "".join(f'<th scope="col">{text(column)}</th>' for column in head)
    body = []
    for index, (first, *cells) in enumerate(rows):
        style = ' class="shaped"' if marked and marked[index] else ""
        figures = "".join(f"<td>{text(cell)}</td>" for cell in cells)
        body.append(f'<tr{style}><th scope="row">{text(first)}</th>{figures}</tr>')
    return (f'<div class="card scroll" role="region" aria-label="Table of figures" tabindex="0"><table>'
            f"<caption><span>{text(caption)}</span></caption>\n<thead><tr>{top}</tr></thead>\n<tbody>\n" + "\n".join(body)
            + "\n</tbody></table></div>")


def items(lines: Sequence[str]) -> str:
    """A list of plain texts."""
    return f"<ul>{''.join(f'<li>{text(line)}</li>' for line in lines)}</ul>"


def code(lines: Sequence[str]) -> str:
    """Lines as they are typed."""
    return f'<pre class="card"><code>{text(chr(10).join(lines))}</code></pre>'


def figure(image: bytes, shown: str, caption: str) -> str:
    """A PNG with what it shows, for those who can't see it, and its caption."""
    data = base64.b64encode(image).decode()
    return (f'<figure class="card"><img src="data:image/png;base64,{data}" alt="{text(shown)}">'
            f"<figcaption>{text(caption)}</figcaption></figure>")


def png(drawing: Figure) -> bytes:
    """A drawing as PNG."""
    buffer = io.BytesIO()
    drawing.savefig(buffer, format="png")
    return buffer.getvalue()
