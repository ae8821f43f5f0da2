"""HTML pages that open alone: tables, pictures and films inside."""

import base64
import html
from collections.abc import Sequence
from pathlib import Path

from deas_vla.files import write_text


def html_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table of plain text cells."""
    cells = lambda row, tag: "".join(f"<{tag}>{html.escape(c)}</{tag}>" for c in row)  # noqa: E731
    body = "".join(f"<tr>{cells(row, 'td')}</tr>" for row in rows)
    return f"<table><tr>{cells(header, 'th')}</tr>{body}</table>"


def html_picture(figure: Path, alt: str) -> str:
    """A PNG, inside the page itself."""
    picture = base64.b64encode(figure.read_bytes()).decode()
    return f'<p><img alt="{html.escape(alt)}" src="data:image/png;base64,{picture}"></p>'


def html_video(film: Path, caption: str) -> str:
    """An mp4, inside the page itself."""
    content = base64.b64encode(film.read_bytes()).decode()
    return (
        f"<figure><video controls muted preload=metadata "
        f'src="data:video/mp4;base64,{content}"></video>'
        f"<figcaption>{html.escape(caption)}</figcaption></figure>"
    )


def write_page(title: str, body: str, path: Path) -> None:
    """An HTML page around ``body``, which must not point at any other file."""
    page = f"""<!doctype html><meta charset="utf-8"><title>{html.escape(title)}</title>
<style>body{{font-family:sans-serif;max-width:62rem;margin:2rem auto;line-height:1.4}}
table{{margin:1rem 0;border-collapse:collapse}}
td,th{{padding:.3rem .8rem;text-align:left;border-bottom:1px solid #ddd}}
img,video{{max-width:100%;max-height:26rem}}figure{{margin:1rem 0}}</style>
<h1>{html.escape(title)}</h1>{body}"""
    write_text(path, page)
