"""How does a page hold tables and figures?"""

import base64
from collections.abc import Sequence
from html import escape


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = ["<tr>" + "".join(f"<th>{escape(cell)}</th>" for cell in head) + "</tr>"]
    lines += ["<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in row) + "</tr>" for row in rows]
    return "<table>\n" + "\n".join(lines) + "\n</table>"


def image(title: str, png: bytes) -> str:
    """A figure inside the page."""
    data = base64.b64encode(png).decode()
    return f'<figure><img alt="{escape(title)}" src="data:image/png;base64,{data}"></figure>'
