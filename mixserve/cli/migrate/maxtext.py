"""MaxText's mixtures of ArrayRecord files: `grain_train_files`, and the JSON of `grain_train_mixture_config_path`."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mixserve.cli.migrate.listed import Listed, Mix, length_of, mapping_of, read_json, read_mapping, text_of, weight_of
from mixserve_client.errors import InvalidRequest
from mixserve_client.schema.text import show

_NOTES = [
    "Shares are of documents, as in MaxText; the order of documents is not. A record is one document, padded or cut to "
    "`length`: MaxText's tokenize_train_data and packing do not carry over.",
]
_OPTIONS = ["# stop: first_exhausted  # where MaxText ends with num_epoch: 1; without it, passes begin again"]


def parse(given: Sequence[str]) -> Mix:
    """The mixture of a text as `grain_train_files` has it, of a JSON file, or of MaxText's YAML.

    Raises InvalidRequest, or OSError.
    """
    if len(given) != 1:
        raise InvalidRequest(f"--from maxtext takes one text or file, quoted for the shell; got {len(given)}")
    file = Path(given[0])
    if file.suffix == ".json":
        return _mix({"train": _of_json(file)})
    if file.suffix in (".yml", ".yaml"):
        return _of_yaml(file)
    return _mix({"train": _of_text(given[0], "")})


def _mix(mixtures: dict[str, list[Listed]], sequence_length: int | None = None) -> Mix:
    return Mix("array_record", mixtures, list(_NOTES), list(_OPTIONS), sequence_length)


def _of_yaml(file: Path) -> Mix:
    found = read_mapping(file)
    kind = found.get("grain_file_type") or "arrayrecord"
    if kind != "arrayrecord":
        raise InvalidRequest(
            f"{file}: grain_file_type: {show(kind)} has no mixture of ArrayRecord files: for tfrecord and parquet use "
            "mixserve init PATH…, for mmap --from megatron"
        )
    mixtures: dict[str, list[Listed]] = {}
    for split, name in (("train", "train"), ("eval", "validation")):
        config, files = found.get(f"grain_{split}_mixture_config_path"), found.get(f"grain_{split}_files")
        if config:
            mixtures[name] = _of_json(Path(text_of(config, f"{file}, grain_{split}_mixture_config_path")))
        elif files:
            where = f"{file}, grain_{split}_files"
            mixtures[name] = _of_text(text_of(files, where), f"{where}, ")
    if not mixtures:
        raise InvalidRequest(f"{file}: must have grain_train_files or grain_train_mixture_config_path")
    return _mix(mixtures, length_of(found.get("max_target_length"), f"{file}, max_target_length"))


def _of_text(text: str, where: str) -> list[Listed]:
    if ";" not in text:
        if "," in text:
            raise InvalidRequest(f"{where}pattern 1: one pattern has no weight, got {show(text)}")
        return [_listed(None, text, f"{where}pattern 1", 1)]
    found: list[Listed] = []
    for number, part in enumerate(text.split(";"), 1):
        here = f"{where}pattern {number}"
        pattern, *weight = part.split(",")
        if len(weight) != 1 or not pattern.strip():
            raise InvalidRequest(f"{here}: must be PATTERN,WEIGHT, got {show(part)}")
        found.append(_listed(None, pattern, here, weight_of(weight[0], here)))
    return found


def _of_json(file: Path) -> list[Listed]:
    found: list[Listed] = []
    for name, value in mapping_of(read_json(file), str(file)).items():
        where = f"{file}, {name}"
        entry: dict[str, Any] = mapping_of(value, where)
        for key in ("path", "weight"):
            if key not in entry:
                raise InvalidRequest(f"{where}: must have {key}, got {show(entry)}")
        weight = weight_of(entry["weight"], f"{where}, weight")
        found.append(_listed(name, text_of(entry["path"], f"{where}, path"), where, weight))
    if not found:
        raise InvalidRequest(f"{file}: must have at least one data set")
    return found


def _listed(name: str | None, pattern: str, where: str, weight: float | int) -> Listed:
    pattern = pattern.strip().replace("**", "*")  # MaxText's `**` matches within one folder
    stem = Path(pattern).name.partition(".")[0].rstrip("*-_0123456789")
    own = stem if stem and "*" not in stem else Path(pattern).parent.name
    return Listed(name or own or "data", [pattern], where, weight)
