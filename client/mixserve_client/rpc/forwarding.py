"""The same call on another object: its signature and its docstring are written once."""

import inspect
from collections.abc import Callable
from typing import Any, Concatenate, ParamSpec, TypeVar

P = ParamSpec("P")
T = TypeVar("T")
R = TypeVar("R")


def named_as(method: Callable[..., Any], call: Callable[Concatenate[Any, P], T]) -> Callable[Concatenate[Any, P], T]:
    """`call` with the name, the signature and the docstring of `method`."""
    call.__name__, call.__qualname__, call.__doc__ = method.__name__, method.__qualname__, method.__doc__
    call.__signature__ = inspect.signature(method)  # pyright: ignore[reportFunctionMemberAccess]
    return call


def with_arguments_of(
    method: Callable[Concatenate[Any, P], Any],
) -> Callable[[Callable[..., R]], Callable[Concatenate[Any, P], R]]:
    """A decorator that gives a function the signature of `method`, all of whose arguments it passes on."""

    def decorate(call: Callable[..., R]) -> Callable[Concatenate[Any, P], R]:
        call.__signature__ = inspect.signature(method)  # pyright: ignore[reportFunctionMemberAccess]
        return call

    return decorate


def with_class_arguments_of(method: Callable[P, Any]) -> Callable[[Callable[..., R]], Callable[Concatenate[Any, P], R]]:
    """As `with_arguments_of`, where `method` is a class method: for another one."""

    def decorate(call: Callable[..., R]) -> Callable[Concatenate[Any, P], R]:
        signature = inspect.signature(method)
        cls = inspect.Parameter("cls", inspect.Parameter.POSITIONAL_OR_KEYWORD)
        parameters = (cls, *signature.parameters.values())
        call.__signature__ = signature.replace(parameters=parameters)  # pyright: ignore[reportFunctionMemberAccess]
        return call

    return decorate
