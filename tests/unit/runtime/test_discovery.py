from __future__ import annotations

import logging
from collections.abc import Iterator
from typing import Any, cast

import pytest

from everstep_operator.api import GROUP, PLURAL
from everstep_operator.discovery import until_listed
from everstep_operator.kube import JOBS, ApiError, Kube, asked

GROUPS = {"groups": [{"name": GROUP}]}
KINDS = {"resources": [{"name": PLURAL}, {"name": f"{PLURAL}/status"}]}


class Server:
    """Lists more with each question."""

    def __init__(self, *answers: tuple[Any, Any]) -> None:
        self._answers: Iterator[tuple[Any, Any]] = iter(answers)
        self._now: tuple[Any, Any] = (None, None)

    async def get(self, path: str) -> Any:
        if path == "/apis":
            self._now = next(self._answers)
        answer = self._now[path == JOBS]
        if isinstance(answer, Exception):
            raise answer
        return answer


async def test_it_waits_until_both_documents_tell_of_them_and_says_so_once(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    absent = ApiError(404, "NotFound", "the server could not find the requested resource")
    server = Server(
        (ApiError(0, "Unreachable", "no answer"), None),
        ({"groups": []}, absent),
        ({"groups": []}, absent),
        ({"groups": []}, KINDS),
        (GROUPS, {"resources": []}),
        (GROUPS, KINDS),
    )
    await until_listed(cast(Kube, server), pause=0.001)
    assert [record.message.split(": ")[1] for record in caplog.records] == [
        "no answer",
        absent.args[0],
        f"no group {GROUP} yet",
        f"no {PLURAL} yet",
    ]


def test_its_requests_have_a_name_among_the_metrics() -> None:
    assert asked("GET", "/apis") == asked("GET", JOBS) == ("get", "discovery")
