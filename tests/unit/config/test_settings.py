"""The operator's settings come from the environment and refuse what cannot work."""

import socket
from pathlib import Path

import pytest

from everstep_operator import health
from everstep_operator.config.settings import Settings, read
from everstep_operator.main import main, run
from everstep_operator.metrics import Metrics


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


WRONG = {
    "KUBECONFIG": ("/no/such/file", "no such file"),
    "WATCH_NAMESPACES": ("team-a,Team_B", "lower-case letters"),
    "LEASE_NAME": ("Its_Name", "lower-case letters"),
    "LEASE_NAMESPACE": ("a.b", "lower-case letters"),
    "IDENTITY": ("", "at least 1 character"),
    "LEASE_SECONDS": ("1", "greater than or equal to 2"),
    "LEASE_RENEW_SECONDS": ("often", "valid number"),
    "CONCURRENCY": ("0", "greater than or equal to 1"),
    "STORE_THREADS": ("1000", "less than or equal to 256"),
    "REQUEST_TIMEOUT_SECONDS": ("0", "greater than 0"),
    "STORE_TIMEOUT_SECONDS": ("15s", "valid number"),
    "POLL_SECONDS": ("0.01", "greater than or equal to 0.2"),
    "POLL_MAX_SECONDS": ("nan", "less than or equal to 3600"),
    "PROGRESS_SECONDS": ("-1", "greater than or equal to 0"),
    "RESYNC_SECONDS": ("0", "greater than or equal to 1"),
    "HTTP_PORT": ("99999", "less than or equal to 65535"),
    "LOG_FORMAT": ("xml", "'json' or 'console'"),
    "LOG_LEVEL": ("LOUD", "'DEBUG', 'INFO', 'WARNING' or 'ERROR'"),
}
"""A value of each setting that cannot work, and words of the way out."""
ANY = {"profiles_file", "http_host"}
"""Settings that may be any text: a profiles file may appear later, an address is tried."""


def test_every_setting_is_tried_with_a_wrong_value() -> None:
    assert {name.lower() for name in WRONG} == Settings.model_fields.keys() - ANY


def refused(capfd: pytest.CaptureFixture[str]) -> str:
    """What the console script prints of its settings; it ends with code 2."""
    with pytest.raises(SystemExit) as ended:
        main([])
    assert ended.value.code == 2
    (line,) = capfd.readouterr().err.splitlines()
    return line


@pytest.mark.parametrize("name", WRONG)
def test_a_wrong_setting_ends_the_process_with_one_line_that_names_it(
    name: str, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    value, hint = WRONG[name]
    monkeypatch.setenv(f"EVERSTEP_OPERATOR_{name}", value)
    line = refused(capfd)
    assert line.startswith(f"everstep-operator: EVERSTEP_OPERATOR_{name} (--{name.lower().replace('_', '-')}) is ")
    assert value.partition(",")[2] in line
    assert hint in line


@pytest.mark.parametrize(
    ("name", "value", "hint"),
    [
        ("LEASE_RENEW_SECONDS", "10", "half of EVERSTEP_OPERATOR_LEASE_SECONDS (15)"),
        ("POLL_SECONDS", "60", "must not exceed EVERSTEP_OPERATOR_POLL_MAX_SECONDS (30)"),
    ],
)
def test_settings_that_contradict_each_other_are_both_named(
    name: str, value: str, hint: str, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv(f"EVERSTEP_OPERATOR_{name}", value)
    line = refused(capfd)
    assert f"EVERSTEP_OPERATOR_{name} ({value})" in line
    assert hint in line


@pytest.mark.parametrize(
    ("name", "hint"),
    [("POLL_SECOND", "did you mean EVERSTEP_OPERATOR_POLL_SECONDS?"), ("ZZZ", "see everstep-operator --help")],
)
def test_a_setting_that_does_not_exist_is_refused(
    name: str, hint: str, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv(f"EVERSTEP_OPERATOR_{name}", "1")
    assert refused(capfd) == f"everstep-operator: EVERSTEP_OPERATOR_{name} is no setting: {hint}"


@pytest.mark.parametrize(
    "name", ["SERVICE_HOST", "SERVICE_PORT", "METRICS_SERVICE_PORT_METRICS", "METRICS_PORT", "PORT_8080_TCP_ADDR"]
)
def test_variables_of_a_service_are_no_settings(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(f"EVERSTEP_OPERATOR_{name}", "tcp://10.0.0.1:8080")
    assert read([]).http_port == 8080


def test_the_help_tells_choices_and_defaults(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        read(["--help"])
    text = " ".join(capsys.readouterr().out.split())
    assert "--log-format json|console Log lines as JSON objects or for people. Default: json" in text
    assert "registers. Default: 5" in text
    assert "Undefined" not in text


def test_flags_override_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EVERSTEP_OPERATOR_CONCURRENCY", "4")
    assert read(["--concurrency", "5"]).concurrency == 5


@pytest.mark.parametrize("text", ["", "not: [yaml", "just text", "clusters: []"])
async def test_a_kubeconfig_that_tells_nothing_is_named(
    text: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "kubeconfig"
    path.write_text(text, encoding="utf-8")
    assert await run(Settings(kubeconfig=path)) == 1
    message = caplog.records[-1].getMessage()
    assert message.startswith(f"ending: the kubeconfig {path} does not tell how to reach the API server: ")
    assert caplog.records[-1].exc_info is None


async def test_an_address_that_cannot_be_listened_on_is_named() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        checks = health.Health(leading=lambda: False)
        with pytest.raises(health.CannotListenError, match=f"127.0.0.1 port {port}: .*EVERSTEP_OPERATOR_HTTP_PORT"):
            await health.serve(checks, Metrics(), "127.0.0.1", port, lambda _: None)
