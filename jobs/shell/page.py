"""The parts of a self-contained web page: escaped text, sections, tables. `page.html` is the frame, `plots.py` draws.

A page has no script, and its content security policy lets it load nothing.
"""

import re
from collections.abc import Sequence
from html import escape
from importlib.resources import files

from tsdfm.jobs.shell.console import CONTROLS

SHORT = 12  # letters of a heading that stays on one line
MANY = 10  # columns from which on a table is set more tightly


def page(title: str, facts: Sequence[str], headline: Sequence[str], sections: Sequence[str],
         question: Sequence[str] = ()) -> str:
    """A whole page. `sections` is HTML, all else plain text; empty sections are left out.

    `question`: paragraphs that say what the headline answers.
    """
    parts = {"TITLE": text(title), "FACTS": text(" · ".join(facts)),
             "QUESTION": "\n".join(f'<p class="question">{text(line)}</p>' for line in question),
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
    kinds = ["short" if len(column) <= SHORT else "long" for column in head]
    top = "".join(f'<th scope="col" class="{kind}">{text(column)}</th>' for kind, column in zip(kinds, head, strict=True))
    body = []
    for index, (first, *cells) in enumerate(rows):
        style = ' class="shaped"' if marked and marked[index] else ""
        figures = "".join(f"<td>{text(cell)}</td>" for cell in cells)
        body.append(f'<tr{style}><th scope="row">{text(first)}</th>{figures}</tr>')
    density = " dense" if len(head) > MANY else ""
    return (f'<figure class="card{density}"><figcaption>{text(caption)}</figcaption>\n'
            f'<div class="scroll" role="region" aria-label="Table" tabindex="0"><table aria-label="{text(caption)}">\n'
            f"<thead><tr>{top}</tr></thead>\n<tbody>\n" + "\n".join(body) + "\n</tbody></table></div></figure>")


def note(plain: str) -> str:
    """A paragraph of plain text beside the matter."""
    return f'<p class="note">{text(plain)}</p>'


def link(place: str, plain: str) -> str:
    """A paragraph that leads to a file beside the page."""
    return f'<p class="note"><a href="{text(place)}">{text(plain)}</a></p>'


def items(lines: Sequence[str]) -> str:
    """A list of plain texts."""
    return f"<ul>{''.join(f'<li>{text(line)}</li>' for line in lines)}</ul>"


def code(lines: Sequence[str]) -> str:
    """Lines as they are typed."""
    return f'<pre class="card"><code>{text(chr(10).join(lines))}</code></pre>'
