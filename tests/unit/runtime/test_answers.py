"""Answers of what stands before an API server, such as a proxy's page."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from everstep_operator.kube import ApiError, Kube


class Proxy:
    """Answers 200 with a page, whatever is asked."""

    async def param_serialize(self, method: str, path: str, **_: Any) -> Any:
        return method, f"https://proxy{path}", {}, None, None

    async def call_api(self, *_: Any, **__: Any) -> Any:
        async def read() -> bytes:
            return b"<html>starting up</html>"

        return SimpleNamespace(status=200, headers={}, read=read)


async def test_a_page_in_the_place_of_an_answer_is_no_answer() -> None:
    """Not a bug of the operator's, which would end it."""
    api: Any = Proxy()
    with pytest.raises(ApiError, match="no JSON") as caught:
        await Kube(api).list_all("/apis/everstep.dev/v1alpha1/trainingjobs")
    assert caught.value.unanswered
