"""The web page at /: the models, and a form to try one that generates text. It calls the API like any other client."""

from __future__ import annotations

import base64
import hashlib
import re
from importlib.resources import files

from starlette.responses import HTMLResponse, Response

from headway.serve.interfaces import Context, Endpoint

_PAGE = files("headway.serve").joinpath("page.html").read_text(encoding="utf-8")


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


ENDPOINTS = (Endpoint("GET", "/", get_page, "a web page with the models and a form to try one"),)
