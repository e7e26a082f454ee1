"""Storage profiles: default-deny, and refusals that say what would be allowed."""

import os
from pathlib import Path
from typing import Any

import pytest

from everstep_operator.config.profiles import (
    Profiles,
    ProfilesError,
    ProfilesFile,
    Refusal,
    StorageRefusedError,
    load_profiles,
)

TEAM_A: dict[str, Any] = {
    "name": "team-a",
    "namespaces": ["team-a", "a-*"],
    "endpoint": "http://s3.test:8333",
    "region": "us-east-1",
    "buckets": [{"name": "shared", "prefixes": ["teams/{namespace}/"]}, {"name": "bucket-a"}],
    "credentials": {"directory": "profiles/team-a"},
}
TEAM_B: dict[str, Any] = {
    "name": "team-b",
    "namespaces": ["team-b"],
    "endpoint": "http://other.test",
    "buckets": [{"name": "bucket-b"}],
}
AWS: dict[str, Any] = {"name": "aws", "namespaces": ["cloud"], "buckets": [{"name": "cloud"}]}
PROFILES = Profiles.model_validate({"profiles": [TEAM_A, TEAM_B, AWS]})
A = "http://s3.test:8333"


@pytest.mark.parametrize(
    ("namespace", "uri", "endpoint", "profile"),
    [
        ("team-a", "s3://bucket-a", A, "team-a"),
        ("team-a", "s3://bucket-a/deep/er/", A, "team-a"),
        ("team-a", "s3://shared/teams/team-a", A, "team-a"),
        ("a-1", "s3://shared/teams/a-1/x", A, "team-a"),
        ("team-a", "s3://bucket-a", "http://S3.test.:8333/", "team-a"),
        ("team-b", "s3://bucket-b", "http://other.test:80", "team-b"),
        ("cloud", "s3://cloud/x", None, "aws"),
    ],
)
def test_allows(namespace: str, uri: str, endpoint: str | None, profile: str) -> None:
    assert PROFILES.access(namespace, uri, endpoint).profile == profile


@pytest.mark.parametrize(
    ("namespace", "uri", "endpoint", "reason", "hint"),
    [
        ("team-c", "s3://bucket-a", A, Refusal.NAMESPACE, "team-c"),
        ("team-a", "s3://bucket-b", A, Refusal.LOCATION, "s3://bucket-a"),
        ("team-a", "s3://shared/teams/team-b", A, Refusal.LOCATION, "s3://shared/teams/team-a"),
        ("team-a", "s3://shared/teams/team-abc", A, Refusal.LOCATION, "s3://shared/teams/team-a"),
        ("team-a", "s3://shared", A, Refusal.LOCATION, "s3://shared/teams/team-a"),
        ("team-a", "s3://shared/teams/team-a/../team-b", A, Refusal.MALFORMED, ".."),
        ("team-a", "s3://shared/teams/team-a//x", A, Refusal.MALFORMED, "empty"),
        ("team-a", "gs://bucket-a", A, Refusal.MALFORMED, "s3://"),
        ("team-a", "s3://bucket-a", "http://evil.test", Refusal.ENDPOINT, A),
        ("team-a", "s3://bucket-a", "https://s3.test:8333", Refusal.ENDPOINT, A),
        ("team-a", "s3://bucket-a", "http://s3.test", Refusal.ENDPOINT, A),
        ("team-a", "s3://bucket-a", "http://s3.test:8333@evil.test", Refusal.ENDPOINT, "URL"),
        ("team-a", "s3://bucket-a", "http://s3.test:99999", Refusal.ENDPOINT, "URL"),
        ("team-a", "s3://bucket-a", None, Refusal.ENDPOINT, A),
        ("cloud", "s3://cloud", A, Refusal.ENDPOINT, "AWS"),
    ],
)
def test_refuses_and_says_what_is_allowed(
    namespace: str, uri: str, endpoint: str | None, reason: Refusal, hint: str
) -> None:
    with pytest.raises(StorageRefusedError) as refused:
        PROFILES.access(namespace, uri, endpoint)
    assert refused.value.reason is reason
    assert hint in str(refused.value)


def test_refusal_does_not_name_other_tenants_storage() -> None:
    with pytest.raises(StorageRefusedError) as refused:
        PROFILES.access("team-a", "s3://somewhere", A)
    assert "bucket-b" not in str(refused.value)
    assert "other.test" not in str(refused.value)


def test_no_profiles_refuse_everything(tmp_path: Path) -> None:
    with pytest.raises(StorageRefusedError) as refused:
        ProfilesFile(tmp_path / "absent.yaml").current().access("team-a", "s3://bucket-a")
    assert refused.value.reason is Refusal.NO_PROFILES


def test_region_of_the_profile_comes_first() -> None:
    assert PROFILES.access("team-a", "s3://bucket-a", A, "mars").region == "us-east-1"
    assert PROFILES.access("team-b", "s3://bucket-b", "http://other.test", "mars").region == "mars"


def _write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")


FILE = """
profiles:
  - name: p
    namespaces: ["*"]
    buckets: [{name: bucket}]
    credentials: {directory: profiles/p}
"""


def test_credentials_are_read_beside_the_file_and_anew(tmp_path: Path) -> None:
    _write(tmp_path / "profiles.yaml", FILE)
    _write(tmp_path / "profiles/p/accessKey", "AK\n")
    _write(tmp_path / "profiles/p/secretKey", "first")
    credentials = load_profiles(tmp_path / "profiles.yaml").access("any", "s3://bucket").credentials
    assert credentials is not None
    assert credentials.read().access_key == "AK"
    assert credentials.read().session_token is None
    _write(tmp_path / "profiles/p/secretKey", "second")
    assert credentials.read().secret_key == "second"
    assert "second" not in repr(credentials.read())


def test_missing_and_empty_credentials_name_the_file(tmp_path: Path) -> None:
    _write(tmp_path / "profiles.yaml", FILE)
    credentials = load_profiles(tmp_path / "profiles.yaml").profiles[0].credentials
    assert credentials is not None
    with pytest.raises(ProfilesError, match=r"accessKey.*Secret"):
        credentials.read()
    _write(tmp_path / "profiles/p/accessKey", " ")
    with pytest.raises(ProfilesError, match=r"accessKey is empty"):
        credentials.read()


@pytest.mark.parametrize(
    ("text", "hint"),
    [
        ("profiles: [{name: p}]", "profiles.0.namespaces"),
        (FILE.replace("region", "r") + "    regoin: x\n", "profiles.0.regoin"),
        (FILE + FILE.replace("profiles:\n", ""), "unique"),
        (FILE.replace("name: bucket", "name: bucket, prefixes: [a/../b]"), "segments"),
        ("a: [", "cannot be read"),
    ],
)
def test_bad_file_is_refused_with_its_place(tmp_path: Path, text: str, hint: str) -> None:
    _write(tmp_path / "profiles.yaml", text)
    with pytest.raises(ProfilesError, match=hint):
        load_profiles(tmp_path / "profiles.yaml")


def test_a_changed_file_is_read_again(tmp_path: Path) -> None:
    path = tmp_path / "profiles.yaml"
    file = ProfilesFile(path)
    assert file.current().profiles == ()
    _write(path, FILE)
    first = file.current()
    assert [p.name for p in first.profiles] == ["p"]
    assert file.current() is first
    _write(tmp_path / "new", FILE.replace("name: p", "name: other"))
    os.replace(tmp_path / "new", path)
    assert [p.name for p in file.current().profiles] == ["other"]
