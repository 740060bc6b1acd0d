"""Self-contained HTML pages for light and dark screens, narrow and wide."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from html import escape

STYLE = """
:root { color-scheme: light dark; --line: #8884; --soft: #8882; --dim: #777; }
@media (prefers-color-scheme: dark) { :root { --dim: #999; } }
body { font: 16px/1.55 system-ui, sans-serif; max-width: 54rem; margin: 2rem auto;
  padding: 0 1rem; overflow-wrap: break-word; }
h1 { line-height: 1.2; } h2 { margin-top: 2.2rem; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; font-size: .9rem; margin: .6rem 0; }
th, td { border-bottom: 1px solid var(--line); padding: .25rem .8rem .25rem 0; text-align: left; }
th.number, td.number { text-align: right; font-variant-numeric: tabular-nums; }
td.number { white-space: nowrap; }
svg { width: 100%; min-width: 20rem; max-width: 38.4rem; height: auto; border-radius: 4px; }
"""

# Pages quote models. They run nothing, and load nothing from elsewhere.
_POLICY = "default-src 'none'; style-src 'unsafe-inline'; img-src data:"


def document(title: str, body: str, *, style: str = "") -> str:
    """Return a page.

    Args:
        title: The title, as text.
        body: HTML.
        style: More rules of CSS.
    """
    return (
        "<!doctype html>\n"
        "<html lang='en'><head><meta charset='utf-8'>"
        "<meta name='viewport' content='width=device-width, initial-scale=1'>"
        f"<meta http-equiv='Content-Security-Policy' content=\"{_POLICY}\">"
        f"<title>{escape(title)}</title><style>{STYLE}{style}</style></head>\n"
        f"<body>\n{body}\n</body></html>\n"
    )


def table(columns: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """Return a table; cells are text, and all but the first column are numbers."""
    head = "".join(_cell("th", name, index) for index, name in enumerate(columns))
    body = "".join(
        f"<tr>{''.join(_cell('td', value, index) for index, value in enumerate(row))}</tr>"
        for row in rows
    )
    return (
        f"<div class='scroll'><table><thead><tr>{head}</tr></thead>"
        f"<tbody>{body}</tbody></table></div>"
    )


def _cell(tag: str, value: object, index: int) -> str:
    mark = " class='number'" if index else ""
    return f"<{tag}{mark}>{escape(str(value))}</{tag}>"
