"""The files of a client's credentials, as they are now -> gRPC channels and metadata."""

import logging
import os
import ssl
import threading
import time
from collections.abc import Sequence

import grpc

from mixserve_client.credentials import TlsOptions, TokenOptions, check_token
from mixserve_client.errors import InvalidRequest
from mixserve_client.forks import renew_in_forks
from mixserve_client.schema.files import FileVersion, read_small, version_of, warn_of_readers
from mixserve_client.transport.contexts import checking_context
from mixserve_client.wire.bulk import ALPN

_logger = logging.getLogger("mixserve_client")

Metadata = tuple[tuple[str, str], ...]
_LOOK_EVERY_S = 1.0
AUTHORIZATION = "authorization"


class Credentials:
    """Who the client is, and whom it trusts, on every new connection and call. Thread-safe.

    Files are looked at once per second at most. `server` is the name that a server's certificate must have (None: that
    of the address).
    """

    def __init__(self, tls: TlsOptions | None, token: TokenOptions, server: str | None = None):
        self._tls, self._token = tls, token
        self.server = server
        self._renew()
        renew_in_forks(self, Credentials._renew)
        self._looked_at = -_LOOK_EVERY_S
        self._versions: dict[str, FileVersion] = {}  # of the files, by path
        self._paths = [os.fspath(path) for path in (tls and (tls.ca, tls.certificate, tls.key)) or () if path]
        self._context: tuple[object, ssl.SSLContext] | None = None  # of the files of that version
        self._token_version: FileVersion = None  # of the file that the metadata are of
        self._metadata = () if token.token is None else _bearer(token.token)

    def _renew(self) -> None:
        self._lock = threading.Lock()

    def of(self, server: str) -> "Credentials":
        """The same, for servers that have this name, whatever their addresses are."""
        return Credentials(self._tls, self._token, server)

    @property
    def tls(self) -> TlsOptions | None:
        """The files of TLS; None without TLS."""
        return self._tls

    def channel_version(self) -> object:
        """Equal as long as the files of TLS are the same: with another one, open a new channel."""
        if not self._paths:
            return None
        with self._lock:
            self._look()
            return tuple(self._versions[path] for path in self._paths)

    def context(self) -> ssl.SSLContext | None:
        """What a bulk channel's TLS needs, with the files as they are now; None without TLS. Raises OSError."""
        if self._tls is None:
            return None
        version = self.channel_version()
        with self._lock:
            if self._context is None or self._context[0] != version:
                self._context = version, checking_context(ALPN, self._tls)
            return self._context[1]

    def open_channel(self, target: str, options: Sequence[tuple[str, str | int]]) -> grpc.Channel:
        """A channel that connects at its first call. Raises InvalidRequest if a file cannot be used."""
        if self._tls is None:
            return grpc.insecure_channel(target, options=options)
        ca, certificate, key = (
            None if path is None else read_small(os.fspath(path), f"tls: {name}")
            for name, path in (("ca", self._tls.ca), ("certificate", self._tls.certificate), ("key", self._tls.key))
        )
        for name, content in (("ca", ca), ("certificate", certificate), ("key", key)):
            if content is not None and b"-----BEGIN " not in content:
                raise InvalidRequest(f"tls: {name}: {getattr(self._tls, name)} is no file in PEM: it has no BEGIN line")
        _check_pair(self._tls)
        if self._tls.key is not None:
            warn_of_readers(self._tls.key, "key", _logger)
        if target.startswith("unix"):  # gRPC would look for the socket's path in the certificate
            options = [*options, ("grpc.ssl_target_name_override", "localhost")]
        elif self.server is not None:
            options = [*options, ("grpc.ssl_target_name_override", self.server)]
        return grpc.secure_channel(target, grpc.ssl_channel_credentials(ca, key, certificate), options=options)

    def metadata(self) -> Metadata:
        """What to send with a call. Raises InvalidRequest if the file of the token cannot be used."""
        path = self._token.token_file
        if path is None:
            return self._metadata
        with self._lock:
            self._look()
            return self._read_token(os.fspath(path))

    def has_another_token(self, sent: Metadata) -> bool:
        """Whether the file of the token has another one by now than `sent`."""
        path = self._token.token_file
        if path is None:
            return False
        with self._lock:
            self._looked_at = -_LOOK_EVERY_S
            self._look()
            try:
                return self._read_token(os.fspath(path)) != sent
            except InvalidRequest:  # the next call raises it
                return False

    def _read_token(self, path: str) -> Metadata:
        """The metadata of the token's file, read if it has changed. Needs the lock."""
        version = self._versions[path]
        if not self._metadata or version != self._token_version:
            try:
                content = read_small(path, "token_file").decode("ascii", "replace")
                self._metadata = _bearer(check_token(content, f"token_file {path}"))
                warn_of_readers(path, "token", _logger)
            except InvalidRequest as error:
                if not self._metadata:
                    raise
                # It is being replaced, perhaps. If the old token was revoked, the server says so.
                _logger.error("%s; the client goes on with the token that it had", error)
            self._token_version = version
        return self._metadata

    def _look(self) -> None:
        """Look at the files, unless that was just done."""
        now = time.monotonic()
        if now - self._looked_at < _LOOK_EVERY_S:
            return
        self._looked_at = now
        token = self._token.token_file
        paths = self._paths if token is None else [*self._paths, os.fspath(token)]
        self._versions = {path: version_of(path) for path in paths}


def _check_pair(tls: TlsOptions) -> None:
    """Raises InvalidRequest unless the client's key belongs to its certificate: gRPC would say nothing of that."""
    if tls.certificate is None or tls.key is None:
        return
    try:
        # A password, so that OpenSSL does not ask for one at the terminal.
        ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT).load_cert_chain(tls.certificate, tls.key, password="")
    except (OSError, ValueError) as error:
        raise InvalidRequest(
            f"tls: certificate and key do not fit each other, are damaged, or the key has a password: "
            f"{tls.certificate}, {tls.key}: {error}"
        ) from error


def _bearer(token: str) -> Metadata:
    return ((AUTHORIZATION, f"Bearer {token}"),)
