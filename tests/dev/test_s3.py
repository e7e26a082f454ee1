"""The S3 server of the tests does what the catalog relies on, and keeps its data when it is killed."""

import re
from pathlib import Path

import pytest
from botocore.exceptions import ClientError

from dev.s3 import S3Endpoint, S3Server


def status(error: ClientError) -> int:
    return error.response["ResponseMetadata"]["HTTPStatusCode"]


@pytest.mark.parametrize("versioned", [False, True])
def test_conditional_writes_are_enforced_with_and_without_versioning(s3_server: S3Endpoint, versioned: bool) -> None:
    client, bucket = s3_server.client(), s3_server.make_bucket(versioned=versioned)
    first = client.put_object(Bucket=bucket, Key="a/register", Body=b"1", IfNoneMatch="*")["ETag"]
    with pytest.raises(ClientError) as present:
        client.put_object(Bucket=bucket, Key="a/register", Body=b"x", IfNoneMatch="*")
    client.put_object(Bucket=bucket, Key="a/register", Body=b"2", IfMatch=first)
    with pytest.raises(ClientError) as stale:
        client.put_object(Bucket=bucket, Key="a/register", Body=b"x", IfMatch=first)
    with pytest.raises(ClientError) as absent:
        client.put_object(Bucket=bucket, Key="a/other", Body=b"x", IfMatch=first)
    assert [status(each.value) for each in (present, stale)] == [412, 412]
    assert status(absent.value) in (404, 412)
    assert client.get_object(Bucket=bucket, Key="a/register")["Body"].read() == b"2"


def test_every_version_of_a_register_can_be_read_back(s3_server: S3Endpoint) -> None:
    client, bucket = s3_server.client(), s3_server.make_bucket(versioned=True)
    token = client.put_object(Bucket=bucket, Key="a/register", Body=b"0", IfNoneMatch="*")["ETag"]
    for number in range(1, 20):
        token = client.put_object(Bucket=bucket, Key="a/register", Body=str(number).encode(), IfMatch=token)["ETag"]
    versions = client.list_object_versions(Bucket=bucket, Prefix="a/register")["Versions"]
    bodies = [
        client.get_object(Bucket=bucket, Key="a/register", VersionId=version["VersionId"])["Body"].read()
        for version in reversed(versions)
    ]
    assert bodies == [str(number).encode() for number in range(20)]


def test_an_upload_to_a_bucket_that_does_not_exist_is_refused(s3_server: S3Endpoint) -> None:
    with pytest.raises(ClientError, match="NoSuchBucket"):
        s3_server.client().put_object(Bucket="nobody-made-this", Key="a", Body=b"1")


def test_wrong_credentials_are_refused(s3_server: S3Endpoint) -> None:
    stranger = S3Endpoint(s3_server.url, s3_server.access_key, "wrong")
    with pytest.raises(ClientError) as refused:
        stranger.client().list_buckets()
    assert status(refused.value) == 403


def test_data_survives_a_kill_and_removal_leaves_nothing(tmp_path: Path) -> None:
    server = S3Server(tmp_path / "s3")
    endpoint = server.start()
    options = (server.directory / "weed.options").read_text()
    ports = set(re.findall(r"port\.grpc=(\d+)", options))

    def sockets() -> set[str]:
        """Of this server alone: others come and go meanwhile."""
        return {path.name for path in Path("/tmp").glob("seaweedfs-*.sock") if path.stem.split("-")[-1] in ports}

    assert sockets()
    bucket = endpoint.make_bucket()
    for number in range(50):
        endpoint.client().put_object(Bucket=bucket, Key=str(number), Body=str(number).encode() * 1000)
    server.stop()
    assert server.start() == endpoint
    bodies = [endpoint.client().get_object(Bucket=bucket, Key=str(number))["Body"].read() for number in range(50)]
    assert bodies == [str(number).encode() * 1000 for number in range(50)]
    server.remove()
    assert not server.directory.exists()
    assert not sockets()
