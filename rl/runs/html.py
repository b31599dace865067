"""How does a page look, and how does it hold sections, tables and figures?"""

import base64
from collections.abc import Sequence
from html import escape

STYLE = """
:root { color-scheme: light; }
body { font: 15px/1.5 system-ui, sans-serif; color: #1a202c; max-width: 60rem; margin: 2rem auto; padding: 0 1rem; }
h1 { font-size: 1.5rem; margin-bottom: 0; } h2 { font-size: 1.1rem; margin: 2.2rem 0 .6rem; }
h1 + p, figcaption, .missing { color: #718096; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; font-size: .9rem; }
th, td { padding: .25rem .7rem; text-align: right; white-space: nowrap; border-bottom: 1px solid #e2e8f0; }
th { font-weight: 600; color: #4a5568; } th:first-child, td:first-child { text-align: left; padding-left: 0; }
figure { margin: 0 0 1.2rem; } figure img { width: 100%; } figcaption { font-size: .85rem; }
pre { white-space: pre-wrap; overflow-wrap: anywhere; margin: .2rem 0; font: .82rem/1.45 ui-monospace, monospace; }
details { border: 1px solid #e2e8f0; border-radius: 4px; padding: .4rem .8rem; margin: .4rem 0; }
summary { cursor: pointer; } .role { color: #718096; font-size: .78rem; margin-top: .5rem; }
.reasoning { color: #a0aec0; }
"""


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = ["<tr>" + "".join(f"<th>{escape(cell)}</th>" for cell in head) + "</tr>"]
    lines += ["<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in row) + "</tr>" for row in rows]
    return "<table>\n" + "\n".join(lines) + "\n</table>"


def image(title: str, png: bytes) -> str:
    """A figure inside the page."""
    data = base64.b64encode(png).decode()
    return f'<figure><img alt="{escape(title)}" src="data:image/png;base64,{data}"></figure>'


def section(title: str, html: str) -> str:
    return f"<h2>{escape(title)}</h2>\n" + (html or '<p class="missing">Nothing of this in the run folder.</p>')


def page(name: str, body: str) -> str:
    """The whole page, with its name as the title."""
    head = f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>{escape(name)}</title>'
    return f"{head}<style>{STYLE}</style></head>\n<body>\n<h1>{escape(name)}</h1>\n{body}\n</body></html>\n"
