"""Certificates of one instance: a CA and what it signs, by the openssl program; keys of a curve, quick to make."""

from __future__ import annotations

import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

DAYS = 365
KEY = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes")
# A configuration of our own: the system's would mark every certificate as a CA.
CONFIGURATION = "[req]\ndistinguished_name = name\n[name]\n"


@dataclass(frozen=True)
class Pair:
    """Paths of a certificate and of its key."""

    certificate: Path
    key: Path


class Authority:
    """A certificate authority in a directory."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.pair = self.path("ca")

    def path(self, name: str) -> Pair:
        return Pair(self.directory / f"{name}.crt", self.directory / f"{name}.key")

    def create(self) -> None:
        """Make the CA, and the key pair that signs ServiceAccount tokens (`sa.key`, `sa.pub`)."""
        self.directory.mkdir(parents=True, exist_ok=True)
        self.directory.chmod(0o700)
        (self.directory / "openssl.cnf").write_text(CONFIGURATION)
        usage = ("-addext", "basicConstraints=critical,CA:TRUE", "-addext", "keyUsage=critical,keyCertSign,cRLSign")
        self._request("ca", "/CN=everstep-ca", usage)
        key, public = self.directory / "sa.key", self.directory / "sa.pub"
        openssl("genpkey", "-algorithm", "EC", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-out", str(key))
        openssl("pkey", "-in", str(key), "-pubout", "-out", str(public))

    def issue(self, name: str, common_name: str, *, group: str = "", alternatives: Sequence[str] = ()) -> Pair:
        """Sign a certificate for client and server use. `alternatives` are like "DNS:localhost" and "IP:127.0.0.1"."""
        subject = (f"/O={group}" if group else "") + f"/CN={common_name}"
        extensions = ["-addext", "extendedKeyUsage=clientAuth,serverAuth", "-addext", "basicConstraints=CA:FALSE"]
        if alternatives:
            extensions += ["-addext", f"subjectAltName={','.join(alternatives)}"]
        signer = ("-CA", str(self.pair.certificate), "-CAkey", str(self.pair.key))
        return self._request(name, subject, [*signer, *extensions])

    def _request(self, name: str, subject: str, arguments: Sequence[str]) -> Pair:
        pair = self.path(name)
        into = ("-keyout", str(pair.key), "-out", str(pair.certificate), "-days", str(DAYS))
        configuration = ("-config", str(self.directory / "openssl.cnf"))
        openssl("req", "-x509", *configuration, *KEY, *into, "-subj", subject, *arguments)
        return pair


def openssl(*arguments: str) -> None:
    """Run openssl; raise with its own words when it fails."""
    done = subprocess.run(["openssl", *arguments], capture_output=True, text=True)
    if done.returncode != 0:
        raise RuntimeError(f"openssl {arguments[0]} failed: {done.stderr.strip()}")
