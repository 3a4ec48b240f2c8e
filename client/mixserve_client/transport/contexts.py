"""Contexts of TLS for connections of our own, which accept what gRPC accepts."""

import ssl
from pathlib import Path

import grpc

from mixserve_client.credentials import TlsOptions


def accepting_context(protocol: str, tls: TlsOptions | None = None) -> ssl.SSLContext:
    """A context that accepts every server, and speaks `protocol` (of ALPN).

    It has the client's own certificate, if there is one. Raises OSError, also ssl.SSLError.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    # As gRPC, or we would refuse certificates that it accepts: any in the file is an authority, and old kinds will do.
    context.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN
    context.set_ciphers("DEFAULT:@SECLEVEL=0")
    context.set_alpn_protocols([protocol])
    if tls is not None and tls.certificate is not None and tls.key is not None:
        context.load_cert_chain(tls.certificate, tls.key, password="")
    return context


def checking_context(protocol: str, tls: TlsOptions) -> ssl.SSLContext:
    """As above, for servers with a certificate for their host's name from an authority of `tls`. Raises OSError."""
    context = accepting_context(protocol, tls)
    context.load_verify_locations(authorities_of(tls)[1])
    context.verify_mode = ssl.CERT_REQUIRED
    context.check_hostname = True
    return context


def authorities_of(tls: TlsOptions) -> tuple[str, str]:
    """The authorities that gRPC trusts, as a text and as a file."""
    if tls.ca is not None:
        return f"the authorities in {tls.ca}", str(tls.ca)
    brought = Path(grpc.__file__).parent / "_cython" / "_credentials" / "roots.pem"
    return "the authorities that gRPC brings (tls=True)", str(brought)
