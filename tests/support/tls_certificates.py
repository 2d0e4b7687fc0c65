"""Certificates made on the spot: authorities of our own, and one for 127.0.0.1 and hooks.test, signed by the first."""

import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Certificates:
    authority: Path
    stranger: Path  #: an authority that signed nothing here
    certificate: Path
    key: Path


def make_certificates(directory: Path) -> Certificates:
    directory.mkdir()
    for name in ("authority", "stranger"):
        _openssl("req", "-x509", *_new(directory, name), "-out", directory / f"{name}.pem")
    _openssl("req", *_new(directory, "server"), "-out", directory / "server.csr")
    (directory / "names").write_text("subjectAltName=IP:127.0.0.1,DNS:hooks.test\n")
    authority = directory / "authority.pem"
    _openssl(
        *("x509", "-req", "-in", directory / "server.csr", "-out", directory / "server.pem", "-days", "2"),
        *("-CA", authority, "-CAkey", directory / "authority.key", "-CAcreateserial", "-extfile", directory / "names"),
    )
    return Certificates(authority, directory / "stranger.pem", directory / "server.pem", directory / "server.key")


def why_not() -> str | None:
    """Return why no Redis with TLS can be tried here."""
    for program in ("openssl", "redis-server"):
        if shutil.which(program) is None:
            return f"{program} is not on PATH"
    command = ["redis-server", "--port", "0", "--tls-port", "1", "--tls-cert-file", "/nonexistent"]
    tried = subprocess.run(command, capture_output=True, text=True, timeout=20, check=False)
    return None if "configure TLS" in tried.stdout else "the redis-server on PATH knows no TLS"


def _new(directory: Path, name: str) -> list[str | Path]:
    key = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-keyout", directory / f"{name}.key"]
    return [*key, "-subj", f"/CN={name}", *([] if name == "server" else ["-days", "2"])]


def _openssl(*arguments: str | Path) -> None:
    subprocess.run(["openssl", *arguments], check=True, capture_output=True, timeout=30)
