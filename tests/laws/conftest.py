"""What all laws share: where their cases are, and how a broken law is reported."""

import sys
from collections.abc import Generator
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item: pytest.Item) -> Generator[None, object, object]:
    """Add the law and its case to whatever breaks it, as an assert inside a comparison names neither."""
    try:
        return (yield)
    except Exception as error:
        law = item.originalname if isinstance(item, pytest.Function) else item.name
        cases = getattr(getattr(item, "callspec", None), "params", {})
        described = ", ".join(f"{name}={value}" for name, value in cases.items())
        error.add_note(f"law: {law.removeprefix('test_').replace('_', ' ')}; case: {described or 'the only one'}")
        raise
