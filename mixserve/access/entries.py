"""The text of a token file <-> its entries. No message shows what a file has: that may be a token."""

import hashlib
import re
import secrets
from typing import Annotated, Any, Literal, cast

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError

from mixserve.access.identity import EVERYBODY, Identity, Role
from mixserve.yaml_file import BadYaml, parse_yaml
from mixserve_client.redaction import TOKEN_PREFIX, has_token

LARGEST_BYTES = 1 << 20
MOST_ENTRIES = 1000  # each takes 0.1 µs of every call
_MOST_MIXTURES = 1000
_RANDOM_BYTES = 32
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}", re.ASCII)
_PLACE = re.compile(r"line \d+, column \d+")
_FORM = "{tokens: [{name: …, role: reader, trainer or admin, mixtures: […] (optional), sha256: 64 hexadecimal digits}]}"
RoleName = Literal["reader", "trainer", "admin"]


class BadTokens(ValueError):
    """A token file, or what is to be written into one, is wrong."""


def check_token_name(name: str) -> str:
    """`name`, if a token may have it. Raises BadTokens."""
    if name.startswith(TOKEN_PREFIX):
        raise BadTokens(
            f"a name must not begin with {TOKEN_PREFIX}, as tokens do: was a token written in place of its name?"
        )
    if _NAME.fullmatch(name) is None or name == EVERYBODY.name:
        raise BadTokens(
            "a name must be 1 to 64 ASCII letters, digits, '.', '_' or '-', begin with a letter or a digit, and not be "
            f"{EVERYBODY.name}"
        )
    return name


def check_mixture_name(name: str) -> str:
    """`name`, if a token may be for a mixture of that name. Raises BadTokens."""
    if has_token(name):
        raise BadTokens("there is a token in place of the name of a mixture")
    return name


class TokenEntry(BaseModel):
    """A token: its name, role, mixtures (None for all) and SHA-256."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, hide_input_in_errors=True)

    name: Annotated[str, AfterValidator(check_token_name)]
    role: RoleName
    mixtures: list[Annotated[str, Field(min_length=1, max_length=1000), AfterValidator(check_mixture_name)]] | None = (
        Field(default=None, min_length=1, max_length=_MOST_MIXTURES)
    )
    sha256: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$", repr=False)]

    @property
    def identity(self) -> Identity:
        """Whom the token stands for."""
        return Identity(self.name, Role[self.role.upper()], None if self.mixtures is None else frozenset(self.mixtures))

    def written(self) -> dict[str, Any]:
        """What the file has."""
        return self.model_dump(exclude_none=True)


def new_token() -> str:
    """A token of 256 random bits."""
    return TOKEN_PREFIX + secrets.token_urlsafe(_RANDOM_BYTES)


def digest_of(token: str) -> bytes:
    """The SHA-256 of a token, by which files and servers know it."""
    # Without salt and stretching: nobody can try 2^256 tokens.
    return hashlib.sha256(token.encode(errors="surrogatepass")).digest()


def parse_entries(text: str) -> tuple[TokenEntry, ...]:
    """The entries in a file's text. Raises BadTokens."""
    try:
        content = parse_yaml(text)
    except BadYaml as error:
        place = _PLACE.search(str(error))
        at = "" if place is None else f"{place[0]}: "
        raise BadTokens(f"{at}is not YAML, or has a key twice or values that are not allowed here") from None
    given: Any = cast(Any, content["tokens"]) if isinstance(content, dict) and list(content) == ["tokens"] else None
    if given is None and content is not None and content != {"tokens": None}:
        raise BadTokens(f"must have the form {_FORM}")
    if not isinstance(given, list | None) or len(given or ()) > MOST_ENTRIES:
        raise BadTokens(f"tokens must be a list of at most {MOST_ENTRIES:,} entries")
    entries = tuple(
        check_entry(entry, f"entry {number}") for number, entry in enumerate(cast(list[Any], given or []), 1)
    )
    _check_distinct("name", [entry.name for entry in entries])
    _check_distinct("sha256", [entry.sha256 for entry in entries])
    return entries


def _check_distinct(field: str, values: list[str]) -> None:
    first = dict[str, int]()
    for number, value in enumerate(values, 1):
        if first.setdefault(value, number) != number:
            raise BadTokens(f"the entries {first[value]} and {number} have the same {field}; remove one of them")


def check_entry(given: Any, what: str = "the token") -> TokenEntry:
    """The entry `given`, by its keys. Raises BadTokens, which calls it `what`."""
    try:
        return TokenEntry.model_validate(given)
    except ValidationError as error:
        problem = error.errors(include_url=False, include_input=False, include_context=False)[0]
        if problem["type"] == "extra_forbidden":  # the key may be a token
            said = f"has an unknown key; allowed are {', '.join(TokenEntry.model_fields)}"
        else:
            key = str(problem["loc"][0]) if problem["loc"] else "it"
            said = f"{key}: {problem['msg'].removeprefix('Value error, ')}"
        raise BadTokens(f"{what}: {said}") from None
