"""Copies signatures and docstrings to forwarding calls, so that each is written once."""

import inspect
from collections.abc import Callable
from typing import Any, Concatenate, ParamSpec, TypeVar

P = ParamSpec("P")
T = TypeVar("T")
R = TypeVar("R")


def named_as(method: Callable[..., Any], call: Callable[Concatenate[Any, P], T]) -> Callable[Concatenate[Any, P], T]:
    """Return `call` with the name, the signature and the docstring of `method`."""
    call.__name__, call.__qualname__, call.__doc__ = method.__name__, method.__qualname__, method.__doc__
    call.__signature__ = inspect.signature(method)  # pyright: ignore[reportFunctionMemberAccess]
    return call


def with_arguments_of(
    method: Callable[Concatenate[Any, P], Any],
) -> Callable[[Callable[..., R]], Callable[Concatenate[Any, P], R]]:
    """A decorator that gives a function the signature of `method`, to which it forwards all arguments."""

    def decorate(call: Callable[..., R]) -> Callable[Concatenate[Any, P], R]:
        call.__signature__ = inspect.signature(method)  # pyright: ignore[reportFunctionMemberAccess]
        return call

    return decorate


def with_class_arguments_of(method: Callable[P, Any]) -> Callable[[Callable[..., R]], Callable[Concatenate[Any, P], R]]:
    """Like `with_arguments_of`, for a class method that forwards to the class method `method`."""

    def decorate(call: Callable[..., R]) -> Callable[Concatenate[Any, P], R]:
        # A bound class method's signature lacks `cls`, and the decorated function is not bound yet.
        signature = inspect.signature(method)
        cls = inspect.Parameter("cls", inspect.Parameter.POSITIONAL_OR_KEYWORD)
        parameters = (cls, *signature.parameters.values())
        call.__signature__ = signature.replace(parameters=parameters)  # pyright: ignore[reportFunctionMemberAccess]
        return call

    return decorate
