"""Token files for tests."""

from collections.abc import Mapping
from pathlib import Path

from mixserve.access.entries import digest_of, new_token

Rights = tuple[str, list[str] | None]  # role and mixtures


class Tokens:
    """A token file, and the tokens that are in it, by name."""

    def __init__(self, path: Path, rights: Mapping[str, Rights]):
        self.path = path
        self.rights = dict(rights)
        self.by_name = {name: new_token() for name in rights}
        self.write()

    def __getitem__(self, name: str) -> str:
        return self.by_name[name]

    def add(self, name: str, role: str, mixtures: list[str] | None = None) -> str:
        self.rights[name] = role, mixtures
        self.by_name[name] = new_token()
        self.write()
        return self.by_name[name]

    def write(self, *without: str) -> None:
        """Replace the file by one that has all tokens but these."""
        lines = ["tokens:"] + [
            f"- {{name: {name}, role: {role}, sha256: '{digest_of(self.by_name[name]).hex()}'"
            f"{'' if mixtures is None else f', mixtures: {mixtures}'}}}"
            for name, (role, mixtures) in self.rights.items()
            if name not in without
        ]
        replace_file(self.path, "\n".join(lines))


def replace_file(path: Path, text: str) -> None:
    """Replace a file at once, as secrets are replaced."""
    new = path.with_name(f"{path.name}.new")
    new.write_text(text)
    new.chmod(0o600)
    new.replace(path)
