"""The web page at /: one document of the files in `page/`, which calls the API like any other client."""

from __future__ import annotations

import base64
import hashlib
import re
from importlib.resources import files

from starlette.responses import HTMLResponse, Response

from headway.serve.interfaces import Context, Endpoint

# The scripts share one global scope, in this order: what all tabs use, a file per tab, and the start.
_SCRIPTS = (
    "elements",
    "server",
    "page",
    "conversations",
    "tokens",
    "chat",
    "texts",
    "images",
    "sounds",
    "series",
    "inside_attention",
    "inside_order",
    "inside_layers",
    "inside",
    "chess_board",
    "chess_game",
    "episodes",
    "play",
    "run_curves",
    "runs",
    "new_run_kinds",
    "new_run_files",
    "new_run_classes",
    "new_run_live",
    "training_notices",
    "new_run",
    "models",
    "start",
)
# What all tabs use, and the styles of single tabs, which apply within their panels.
_STYLES = ("style", "text", "files", "inside", "play", "runs", "training", "models")


def _assemble_page() -> str:
    folder = files("headway.serve").joinpath("page")
    read = lambda name: folder.joinpath(name).read_text(encoding="utf-8").strip()  # noqa: E731
    scripts = "\n".join(f"<script>\n{read(f'{name}.js')}\n</script>" for name in _SCRIPTS)
    style = "\n".join(read(f"{name}.css") for name in _STYLES)
    page = read("index.html").replace("{{ style }}", f"\n{style}\n")
    return page.replace("{{ scripts }}", scripts) + "\n"


_PAGE = _assemble_page()


def _element_hashes(tag: str) -> str:
    """Hashes of the page's own elements with this tag; the content security policy allows no others."""
    elements = re.findall(f"<{tag}>(.*?)</{tag}>", _PAGE, re.DOTALL)
    return " ".join(
        f"'sha256-{base64.b64encode(hashlib.sha256(element.encode()).digest()).decode()}'" for element in elements
    )


_HEADERS = {
    "Content-Security-Policy": "; ".join(
        (
            "default-src 'none'",
            f"script-src {_element_hashes('script')}",
            f"style-src {_element_hashes('style')}",
            "img-src blob: data:",  # of files that the reader chose, and of pictures in answers
            "media-src blob:",
            "connect-src 'self'",
            "base-uri 'none'",
            "form-action 'none'",
            "frame-ancestors 'none'",
        )
    ),
    "Referrer-Policy": "no-referrer",
}


async def get_page(body: None, context: Context) -> Response:
    """The same page for everyone; it contains nothing about this server."""
    return HTMLResponse(_PAGE, headers=_HEADERS)


ENDPOINTS = (Endpoint("GET", "/", get_page, "a web page to use, inspect and train models"),)
