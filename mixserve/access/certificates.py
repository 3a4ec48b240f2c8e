"""The files of a server's TLS: checked before they are used, and read again when they change."""

import logging
import ssl
import threading
from collections.abc import Mapping
from dataclasses import dataclass
from os import PathLike, fspath
from pathlib import Path
from typing import Any, NamedTuple, NoReturn, cast

from mixserve_client.credentials import check_no_token
from mixserve_client.schema.certificate import expiry, key_kind
from mixserve_client.schema.files import FileVersion, read_small, version_of, warn_of_readers
from mixserve_client.schema.text import show
from mixserve_client.wire.bulk import ALPN

_logger = logging.getLogger("mixserve")

_NAMES = ("certificate", "key", "client_ca")


@dataclass(frozen=True, slots=True)
class ServerTls:
    """The files of a server's TLS, in PEM: its `certificate` (or a chain that begins with it) and the `key` to it.

    With `client_ca`, every client needs a certificate that these authorities have signed. Raises ValueError.
    """

    certificate: str | PathLike[str]
    key: str | PathLike[str]
    client_ca: str | PathLike[str] | None = None

    def __post_init__(self) -> None:
        for name in _NAMES:
            given: Any = getattr(self, name)
            if given is None and name == "client_ca":
                continue
            if not isinstance(given, str | PathLike) or not fspath(cast("str | PathLike[str]", given)):
                raise ValueError(f"tls: {name} must be the path of a file in PEM, got {show(given)}")
            check_no_token(fspath(cast("str | PathLike[str]", given)), f"tls: {name} must be the path of a file in PEM")
            # Links stay: where secrets are mounted, a link leads to the newest ones.
            path = Path(cast("str | PathLike[str]", given)).expanduser().absolute()
            object.__setattr__(self, name, str(path))

    @classmethod
    def of(cls, given: Any) -> "ServerTls | None":
        """The files that ServerTls or a mapping with its names stand for; None for None. Raises ValueError."""
        if given is None or isinstance(given, cls):
            return given
        if isinstance(given, Mapping):
            options = cast(Mapping[Any, Any], given)
            if {"certificate", "key"} <= options.keys() <= set(_NAMES):
                return cls(**options)
        raise ValueError(
            f"tls must be ServerTls(certificate=…, key=…, client_ca=…) or a mapping with these names, got {show(given)}"
        )


class Pair(NamedTuple):
    """What the files hold: they fit each other. `context` has them, for bulk channels.

    `expires` is when the certificate ends, in seconds since 1970; of a chain, when the first of it ends.
    """

    certificate: bytes
    key: bytes
    client_ca: bytes | None
    context: ssl.SSLContext
    expires: float

    def __repr__(self) -> str:
        return "Pair(…)"  # not the key


class Certificates:
    """The newest files that fit each other. Thread-safe."""

    def __init__(self, tls: ServerTls):
        """Raises ValueError, which names the file and says what is wrong with it."""
        self._tls = tls
        self._paths = [path for path in (tls.certificate, tls.key, tls.client_ca) if path is not None]
        self._lock = threading.Lock()
        self._seen = self._versions()
        self._pair = self._load()

    @property
    def requires_clients(self) -> bool:
        """Whether a client needs a certificate."""
        return self._tls.client_ca is not None

    @property
    def pair(self) -> Pair:
        """What the files hold, the same object until they have changed, and what they hold then fits.

        One line in the log says why files that have changed are not used; what was in use stays in use then.
        """
        with self._lock:
            versions = self._versions()
            if versions == self._seen:
                return self._pair
            try:
                pair = self._load()
            except ValueError as error:
                self._seen = versions
                _logger.error("%s; the server goes on with the certificate that it had", error)
                return self._pair
            # The files are being written: what was read may not belong together. The next connection looks again.
            if self._versions() != versions:
                return self._pair
            self._seen, self._pair = versions, pair
            _logger.info("new connections use the certificate that %s has now", self._tls.certificate)
            return pair

    def read_again(self) -> None:
        """Read the files, whether or not they have changed, and log what came of it."""
        with self._lock:
            versions = self._versions()
            try:
                pair = self._load()
            except ValueError as error:
                self._seen = versions
                _logger.error("%s; the server goes on with the certificate that it had", error)
                return
            if pair[:3] != self._pair[:3]:
                self._pair = pair
            self._seen = versions
            _logger.info("read the certificate %s, its key and authorities again", self._tls.certificate)

    def _versions(self) -> tuple[FileVersion, ...]:
        return tuple(version_of(path) for path in self._paths)

    def _load(self) -> Pair:
        """Raises ValueError."""
        tls = self._tls
        certificate, key = read_small(tls.certificate, "tls: certificate"), read_small(tls.key, "tls: key")
        _check_certificates("certificate", tls.certificate, certificate)
        if b"PRIVATE KEY-----" not in key:
            raise ValueError(f"tls: key: {tls.key} has no private key in PEM (no BEGIN PRIVATE KEY)")
        warn_of_readers(tls.key, "key", _logger)
        context = _check_pair(tls)
        _check_kind(tls.certificate, certificate)
        client_ca = None if tls.client_ca is None else read_small(tls.client_ca, "tls: client_ca")
        if client_ca is not None:
            _check_certificates("client_ca", tls.client_ca, client_ca)
            context.load_verify_locations(cadata=client_ca.decode("ascii", "replace"))
            context.verify_mode = ssl.CERT_REQUIRED
            # As gRPC: any in the file is an authority. And no resumed sessions, which would not look at the client's
            # certificate again.
            context.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN
            context.options |= ssl.OP_NO_TICKET
            context.num_tickets = 0
        return Pair(certificate, key, client_ca, context, _expiry(tls.certificate, certificate))


def _check_certificates(name: str, path: object, content: bytes) -> None:
    """Raises ValueError unless `content` has certificates in PEM, all of them whole."""
    if b"-----BEGIN CERTIFICATE-----" not in content:
        raise ValueError(f"tls: {name}: {path} has no certificate in PEM (no line BEGIN CERTIFICATE)")
    try:
        ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_verify_locations(cadata=content.decode("ascii", "replace"))
    except (ssl.SSLError, ValueError) as error:
        raise ValueError(f"tls: {name}: {path} has a damaged certificate, or is not complete: {error}") from error


def _check_pair(tls: ServerTls) -> ssl.SSLContext:
    """A context with certificate and key. Raises ValueError unless the key can be read, and belongs to the
    certificate."""

    def refuse() -> NoReturn:  # without it, OpenSSL would ask for the password at the terminal
        raise ValueError(f"tls: key: {tls.key} is encrypted; a server needs a key without a password")

    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.set_alpn_protocols([ALPN])
    try:
        context.load_cert_chain(tls.certificate, tls.key, password=refuse)
    except ssl.SSLError as error:
        # For keys of another kind than the certificate, such as RSA and EC, the reason is NO_CERTIFICATE_ASSIGNED.
        if error.reason in ("KEY_VALUES_MISMATCH", "KEY_TYPE_MISMATCH", "NO_CERTIFICATE_ASSIGNED"):
            raise ValueError(
                f"tls: key: {tls.key} is not the key of {tls.certificate}; the first certificate in that file must be "
                f"the server's own"
            ) from error
        if error.reason:  # such as EE_KEY_TOO_SMALL: the security level of this machine's OpenSSL
            raise ValueError(f"tls: {tls.certificate} with {tls.key} is refused by OpenSSL: {error}") from error
        raise ValueError(f"tls: key: {tls.key} is damaged, or not a key in PEM: {error}") from error
    except OSError as error:
        raise ValueError(f"tls: {tls.certificate} or {tls.key} cannot be read: {error.strerror}") from error
    return context


def _expiry(path: object, certificate: bytes) -> float:
    """When the first certificate to end does so. Raises ValueError."""
    try:
        return min(expiry(ssl.PEM_cert_to_DER_cert(one)) for one in _split(certificate))
    except (ValueError, IndexError) as error:
        raise ValueError(f"tls: certificate: {path} has a damaged certificate: {error}") from error


def _split(certificates: bytes) -> list[str]:
    """The certificates of a chain, each in PEM."""
    begin, end = b"-----BEGIN CERTIFICATE-----", b"-----END CERTIFICATE-----"
    parts = certificates.split(end)[:-1]
    return [(part[part.index(begin) :] + end).decode("ascii", "replace") for part in parts]


def _check_kind(path: object, certificate: bytes) -> None:
    """Raises ValueError unless gRPC can serve with the first certificate, whatever this machine's OpenSSL can."""
    try:
        kind = key_kind(ssl.PEM_cert_to_DER_cert(_split(certificate)[0]))
    except (ValueError, IndexError) as error:
        raise ValueError(f"tls: certificate: {path} has a damaged certificate: {error}") from error
    if kind is None:
        raise ValueError(
            f"tls: certificate: {path} has a key that gRPC cannot serve: make one of RSA, or of the curves P-256, "
            "P-384 or P-521"
        )
