"""Real certificates, made by the command `openssl`."""

import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

import pytest

# Tests that import this module need the command.
NEEDS_OPENSSL = pytest.mark.skipif(shutil.which("openssl") is None, reason="the command openssl makes certificates")

_KEY = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes")
_CONFIG = """
[ca]
default_ca = here
[here]
database = {folder}/index.txt
rand_serial = yes
unique_subject = no
default_md = sha256
new_certs_dir = {folder}
policy = any
copy_extensions = copy
[any]
commonName = supplied
[req]
distinguished_name = name
[name]
[v3_ca]
basicConstraints = critical, CA:TRUE
"""


@dataclass(frozen=True)
class Pair:
    """A certificate and its key."""

    certificate: Path
    key: Path

    def copy_to(self, folder: Path) -> "Pair":
        """Put them into `folder`, under the same names for every pair; each file is replaced at once."""
        made = Pair(folder / "tls.pem", folder / "tls.key")
        for source, target in ((self.key, made.key), (self.certificate, made.certificate)):
            new = target.with_suffix(".new")
            shutil.copyfile(source, new)
            new.rename(target)
        return made


class Authority:
    """An authority in a folder of its own; `ca` is its certificate.

    It is valid from the beginning of the year `since` to that of the year `until`.
    """

    def __init__(self, folder: Path, name: str = "Test Authority", since: str = "2000", until: str = "2090"):
        self._folder = folder
        folder.mkdir()
        self._config = folder / "openssl.cnf"
        self._config.write_text(_CONFIG.format(folder=folder))
        (folder / "index.txt").touch()
        self._key, self.ca = folder / "ca.key", folder / "ca.pem"
        request = folder / "ca.csr"
        _openssl(
            "req", "-new", *_KEY, "-subj", f"/CN={name}", "-config", self._config, "-keyout", self._key, "-out", request
        )  # fmt: skip
        _openssl(
            "ca", "-batch", "-notext", "-selfsign", "-extensions", "v3_ca", "-config", self._config,
            "-keyfile", self._key, "-in", request, "-out", self.ca, *_dates(since, until),
        )  # fmt: skip

    def issue(
        self,
        name: str,
        names: str = "IP:127.0.0.1, DNS:localhost",
        since: str = "2000",
        until: str = "2090",
        bits: int = 0,
    ) -> Pair:
        """A pair that is valid from the beginning of the year `since` to that of the year `until`.

        It is an elliptic curve's, or an RSA pair of so many `bits`.
        """
        key = ("-newkey", f"rsa:{bits}", "-nodes") if bits else _KEY
        request, made = self._folder / f"{name}.csr", Pair(self._folder / f"{name}.pem", self._folder / f"{name}.key")
        _openssl(
            "req", "-new", *key, "-subj", f"/CN={name}", "-addext", f"subjectAltName={names}", "-config", self._config,
            "-keyout", made.key, "-out", request,
        )  # fmt: skip
        _openssl(
            "ca", "-batch", "-notext", "-config", self._config, "-cert", self.ca, "-keyfile", self._key, "-in", request,
            "-out", made.certificate, *_dates(since, until),
        )  # fmt: skip
        return made


def _dates(since: str, until: str) -> tuple[str, ...]:
    return "-startdate", f"{since}0101000000Z", "-enddate", f"{until}0101000000Z"


def self_signed(folder: Path, days: int = 30) -> Pair:
    made = Pair(folder / "self.pem", folder / "self.key")
    names = ("-subj", "/CN=alone", "-addext", "subjectAltName=IP:127.0.0.1")
    _openssl("req", "-x509", *_KEY, "-days", str(days), *names, "-keyout", made.key, "-out", made.certificate)
    return made


@dataclass(frozen=True)
class Made:
    """Three authorities, and certificates of theirs: right ones, and one of each kind that is refused."""

    authority: Authority
    other: Authority
    old: Authority  # it has expired
    server: Pair
    client: Pair
    stranger: Pair  # of a client, signed by the other authority
    expired: Pair
    early: Pair
    elsewhere: Pair
    alone: Pair
    orphan: Pair  # signed by the authority that has expired since

    @classmethod
    def in_folder(cls, folder: Path) -> "Made":
        authority, other = Authority(folder / "one"), Authority(folder / "other", "Other Authority")
        old = Authority(folder / "old", "Old Authority", until="2001")
        return cls(
            authority,
            other,
            old,
            server=authority.issue("server"),
            client=authority.issue("trainer"),
            stranger=other.issue("stranger"),
            expired=authority.issue("old", until="2001"),
            early=authority.issue("early", since="2080"),
            elsewhere=authority.issue("elsewhere", "DNS:data.example, IP:192.0.2.7"),
            alone=self_signed(folder),
            orphan=old.issue("orphan"),
        )


def _openssl(*arguments: str | Path) -> None:
    done = subprocess.run(["openssl", *map(str, arguments)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
