"""What tests against transformers share: its progress and advice are switched off."""

from __future__ import annotations

from collections.abc import Iterator

import pytest


@pytest.fixture(scope="session", autouse=True)
def _quiet() -> Iterator[None]:
    peer = pytest.importorskip("transformers").utils.logging
    before = peer.get_verbosity()
    peer.set_verbosity_error()
    peer.disable_progress_bar()
    yield
    peer.enable_progress_bar()
    peer.set_verbosity(before)
