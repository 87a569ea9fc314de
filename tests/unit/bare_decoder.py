"""The decoder of a server's helper process without the packages of the extras vision and audio."""

from __future__ import annotations

import sys

for _name in ("PIL", "soundfile", "av"):
    sys.modules[_name] = None  # type: ignore[assignment]  # an import fails

from headway.serve.media_decoder import answer as answer
