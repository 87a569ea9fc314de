"""The page at /: the models, and a box to try one that writes. It asks for all that by the API, as any client does."""

from __future__ import annotations

import base64
import hashlib
import re
from importlib.resources import files

from starlette.responses import HTMLResponse, Response

from headway.serve.frame import Context, Endpoint

_PAGE = files("headway.serve").joinpath("page.html").read_text(encoding="utf-8")


def _digests(tag: str) -> str:
    """What a policy calls the page's own elements of this tag, so that no other runs or counts."""
    found = re.findall(f"<{tag}>(.*?)</{tag}>", _PAGE, re.DOTALL)
    return " ".join(f"'sha256-{base64.b64encode(hashlib.sha256(each.encode()).digest()).decode()}'" for each in found)


_HEADERS = {
    "Content-Security-Policy": "; ".join(
        (
            "default-src 'none'",
            f"script-src {_digests('script')}",
            f"style-src {_digests('style')}",
            "connect-src 'self'",
            "base-uri 'none'",
            "form-action 'none'",
            "frame-ancestors 'none'",
        )
    ),
    "Referrer-Policy": "no-referrer",
}


async def shown(body: None, context: Context) -> Response:
    """The same for everybody: it holds nothing of this server's."""
    return HTMLResponse(_PAGE, headers=_HEADERS)


ENDPOINTS = (Endpoint("GET", "/", shown, "a page for people: the models, and a box to try one"),)
