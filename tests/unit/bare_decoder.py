"""The decoder of a server's helper process without the packages of the extras vision and audio."""

from __future__ import annotations

import sys
from typing import Any

for _name in ("PIL", "soundfile", "av"):
    sys.modules[_name] = None  # type: ignore[assignment]  # an import fails


def answer(request: dict[str, Any], data: bytearray) -> tuple[dict[str, Any], bytes]:
    from headway.serve import media_decoder

    return media_decoder.answer(request, data)
