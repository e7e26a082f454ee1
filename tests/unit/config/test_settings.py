"""The operator's settings come from the environment and refuse what cannot work."""

import pytest
from pydantic import ValidationError

from everstep_operator.config.settings import Settings


def test_defaults_need_nothing() -> None:
    settings = Settings()
    assert settings.watch_namespaces == ()
    assert settings.http_port == 8080
    assert settings.identity != Settings().identity


def test_reads_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EVERSTEP_OPERATOR_WATCH_NAMESPACES", "team-a, team-b,")
    monkeypatch.setenv("EVERSTEP_OPERATOR_LOG_LEVEL", "debug")
    monkeypatch.setenv("EVERSTEP_OPERATOR_POLL_SECONDS", "1.5")
    settings = Settings()
    assert settings.watch_namespaces == ("team-a", "team-b")
    assert settings.log_level == "DEBUG"
    assert settings.poll_seconds == 1.5


@pytest.mark.parametrize(
    ("name", "value", "hint"),
    [
        ("LOG_FORMAT", "xml", "json"),
        ("LEASE_RENEW_SECONDS", "10", "half of lease_seconds"),
        ("POLL_SECONDS", "60", "poll_max_seconds"),
        ("CONCURRENCY", "0", "concurrency"),
    ],
)
def test_refuses_what_cannot_work(monkeypatch: pytest.MonkeyPatch, name: str, value: str, hint: str) -> None:
    monkeypatch.setenv(f"EVERSTEP_OPERATOR_{name}", value)
    with pytest.raises(ValidationError, match=hint):
        Settings()
