"""A report as one HTML page: its Markdown, with the pictures in it, which needs no network."""

from __future__ import annotations

import base64
import html
import re
from collections.abc import Mapping

from markdown_it import MarkdownIt

POLICY = "default-src 'none'; style-src 'unsafe-inline'; img-src data:"
STYLE = """
body {font: 16px/1.5 system-ui, sans-serif; margin: 1rem auto; max-width: 1300px; padding: 0 1rem;
  overflow-wrap: anywhere}
img {max-width: 100%; height: auto}
.wide {overflow-x: auto; margin: 1rem 0}
table {border-collapse: collapse; font-size: 13px; overflow-wrap: normal}
td, th {border-bottom: 1px solid #ccc; padding: .3rem .6rem; text-align: right; white-space: nowrap}
td:first-child, th:first-child {text-align: left}
pre {background: #f4f4f4; padding: .6rem; overflow-x: auto}
h2 {border-top: 1px solid #ccc; margin-top: 2.5rem; padding-top: 1rem}
"""


def page(markdown: str, pictures: Mapping[str, bytes]) -> str:
    """The whole page; text of the report is never markup, and pictures are part of the page.

    Args:
        markdown: of the report.
        pictures: PNG files by the names that it has for them.

    Raises:
        ValueError: it has a picture that is none of them.
    """
    body = MarkdownIt("commonmark", {"html": False}).enable("table").render(markdown)
    body = body.replace("<table>", '<div class="wide"><table>')
    body = body.replace("</table>", "</table></div>")

    def inlined(match: re.Match[str]) -> str:
        name = html.unescape(match[1])
        if name not in pictures:
            raise ValueError(f"{name}: a picture that the report does not have")
        return f'src="data:image/png;base64,{base64.b64encode(pictures[name]).decode()}"'

    body = re.sub(r'src="([^"]*)"', inlined, body)
    heading = re.search(r"<h1>(.*?)</h1>", body)
    title = heading[1] if heading else "Report"
    return (
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">'
        f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">'
        '<meta name="viewport" content="width=device-width">'
        f"<title>{title}</title><style>{STYLE}</style></head>\n<body>{body}</body></html>\n"
    )
