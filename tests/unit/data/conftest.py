from __future__ import annotations

import logging
from collections.abc import Iterator

import pytest


@pytest.fixture
def said(caplog: pytest.LogCaptureFixture) -> Iterator[pytest.LogCaptureFixture]:
    """What everstep logs, whatever another test did to its logger."""
    log = logging.getLogger("everstep")
    log.addHandler(caplog.handler)
    with caplog.at_level(logging.INFO, logger="everstep"):
        yield caplog
    log.removeHandler(caplog.handler)
