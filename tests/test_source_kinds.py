"""The table of source kinds: each line of it is all that the configuration needs for a kind."""

import importlib
import pkgutil
import re
from pathlib import Path

import pytest

from mixserve.config import ConfigError, load_config
from mixserve.sources import kinds
from mixserve.sources.kinds.base import SourceConfig
from mixserve.sources.kinds.records import RecordFilesConfig
from mixserve.sources.registry import KINDS
from tests.test_packages import loaded_by

PAGE = Path(__file__).parent.parent / "docs/sources.md"


def refusal(folder: Path, source: str) -> str:
    """The message for a configuration with that one source."""
    path = folder / "mixture.yaml"
    path.write_text(f"mixtures: {{train: {{sources: {{one: {source}}}}}}}")
    with pytest.raises(ConfigError) as raised:
        load_config(path)
    return str(raised.value).removeprefix(f"{path}: mixtures.train.sources.one")


def keys_of(kind: str) -> set[str]:
    fields = KINDS[kind].model_fields.items()
    return {field.alias or name for name, field in fields} - set(SourceConfig.model_fields) - {"kind"}


def test_the_configuration_takes_the_kinds_of_the_table(tmp_path):
    allowed = ", ".join(map(repr, KINDS))
    said = refusal(tmp_path, "{kind: punched_cards, weight: 1}")
    assert said.startswith(
        f": Input tag 'punched_cards' found using 'kind' does not match any of the expected tags: {allowed}"
    )


@pytest.mark.parametrize("kind", KINDS)
def test_a_kind_has_its_own_keys_in_messages(tmp_path, kind):
    said = refusal(tmp_path, f"{{kind: {kind}, nothing: 1}}")
    (allowed,) = re.findall(r"\.nothing: unknown key; allowed here are (.*)", said)
    assert set(allowed.split(", ")) == {"weight", "content_id", "on_error", "kind"} | keys_of(kind)


def test_every_file_of_a_kind_has_a_line_in_the_table():
    for module in pkgutil.iter_modules(kinds.__path__, kinds.__name__ + "."):
        importlib.import_module(module.name)
    shared = {RecordFilesConfig}  # of kinds with equal keys
    of_shared = {config for base in shared for config in base.__subclasses__()}
    assert {*SourceConfig.__subclasses__(), *of_shared} - shared == set(KINDS.values())


@pytest.mark.parametrize("kind", KINDS)
def test_a_kind_opens_itself_and_says_so_in_the_docs(kind):
    assert KINDS[kind].open is not SourceConfig.open
    (row,) = re.findall(rf"^\| `{kind}` \| (.*) \|$", PAGE.read_text(), re.MULTILINE)
    assert all(f"`{key}`" in row for key in keys_of(kind))


def test_the_configurations_of_the_page_are_valid(tmp_path):
    file = tmp_path / "mixture.yaml"
    for block in re.findall(r"^```yaml\n(mixtures:.*?)^```", PAGE.read_text(), re.MULTILINE | re.DOTALL):
        file.write_text(block)
        load_config(file)


def test_a_configuration_is_checked_without_jax():
    assert "jax" not in loaded_by("import mixserve.config")
