"""Errors of ours -> gRPC statuses."""

from collections.abc import Generator
from contextlib import contextmanager

import grpc

from mixserve.access.call import Call
from mixserve_client.errors import MixserveError, class_of
from mixserve_client.wire.error import error_metadata, error_text


@contextmanager
def statuses(context: grpc.ServicerContext, call: Call) -> Generator[None]:
    """Ends `call` with the gRPC status of a MixserveError, and never with what is not an Exception.

    gRPC would not answer the call then, and its client would wait for ever.
    """
    try:
        yield
    except GeneratorExit:  # not an error: the reader is gone
        raise
    except MixserveError as error:
        call.fail(error)
        # Several error classes share a code, so the class travels as a trailing metadatum.
        context.set_trailing_metadata(error_metadata(error))
        context.abort(getattr(grpc.StatusCode, class_of(error).code), error_text(error))
    except BaseException as error:
        if isinstance(error, Exception):
            raise
        raise RuntimeError(f"{type(error).__name__} while the call was answered") from error
