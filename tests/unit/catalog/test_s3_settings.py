"""What of the environment an S3 client is made of, and what is said of settings that make none."""

from __future__ import annotations

from pathlib import Path

import pytest

from everstep.catalog import S3Access, open_store
from everstep.catalog.store.s3_clients import S3Clients
from everstep.errors import InvalidOperationError, StorageRefusedError

NAMES = ("AWS_REGION", "AWS_DEFAULT_REGION", "AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3", "AWS_PROFILE")


@pytest.fixture(autouse=True)
def keys(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in NAMES:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "a")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "b")
    monkeypatch.setenv("AWS_CONFIG_FILE", "/nowhere")


@pytest.mark.parametrize(
    ("given", "variables", "region"),
    [
        (None, {}, "us-east-1"),
        (None, {"AWS_DEFAULT_REGION": "eu-west-1"}, "eu-west-1"),
        (None, {"AWS_REGION": "eu-west-2"}, "eu-west-2"),
        (None, {"AWS_REGION": "eu-west-2", "AWS_DEFAULT_REGION": "eu-west-1"}, "eu-west-2"),
        ("eu-west-3", {"AWS_REGION": "eu-west-2"}, "eu-west-3"),
    ],
)
def test_the_region(given: str | None, variables: dict[str, str], region: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert S3Clients(S3Access(region=given)).control.meta.region_name == region


def test_the_variable_for_s3_comes_before_the_one_for_all_services(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://all.example:1")
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", "http://s3.example:2")
    assert S3Clients(S3Access()).control.meta.endpoint_url == "http://s3.example:2"


@pytest.mark.parametrize("endpoint", ["localhost:8333", "http://", ""])
def test_an_endpoint_that_is_no_url_is_refused_with_one_that_is(endpoint: str) -> None:
    with pytest.raises(InvalidOperationError, match=r"expected a URL such as http://host:8333"):
        open_store("s3://bucket/run", S3Access(endpoint=endpoint))


@pytest.mark.parametrize(
    ("variables", "access", "message"),
    [
        ({"AWS_SECRET_ACCESS_KEY": ""}, S3Access(connections=1), "missing: AWS_SECRET_ACCESS_KEY"),
        ({"AWS_PROFILE": "nope"}, S3Access(connections=2), r"profile \(nope\) could not be found"),
        ({}, S3Access(region="eu west"), "eu west"),
    ],
)
def test_settings_that_make_no_client_are_a_refusal(
    variables: dict[str, str], access: S3Access, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(StorageRefusedError, match=message):
        open_store("s3://bucket/run", access)


def test_a_name_that_can_be_no_buckets_is_refused_and_not_waited_for() -> None:
    store = open_store("s3://Bad_Bucket!/run")
    with pytest.raises(StorageRefusedError, match='Invalid bucket name "Bad_Bucket!"') as refused:
        store.read_register("catalog.json")
    assert "\n" not in str(refused.value)
    with pytest.raises(StorageRefusedError, match="Invalid bucket name"):
        store.swap_register("catalog.json", b"{}", None)


def test_a_path_begins_at_home_where_it_says_so(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    assert open_store("~/runs").uri == str(tmp_path / "runs")
    with pytest.raises(InvalidOperationError, match="home directory"):
        open_store("~nobody-of-this-name/runs")
