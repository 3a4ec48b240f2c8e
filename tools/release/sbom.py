"""The wheels of build/dist -> a CycloneDX list, for each package, of what an installation of it has.

The versions are those of constraints.txt, on this platform and Python, without extras.
"""

import json
import os
import subprocess
import sys
from importlib.metadata import distributions
from pathlib import Path

from cyclonedx.schema import OutputFormat, SchemaVersion
from cyclonedx.validation import make_schemabased_validator

from tools.release.build import source_date_epoch
from tools.release.clean import OUT, ROOT, archives, make_environment


def main() -> None:
    os.environ["SOURCE_DATE_EPOCH"] = str(source_date_epoch())
    for package in ("client", "server"):
        python = make_environment(package, "wheel")
        name, version = archives(package, "wheel")[-1].name.split("-")[:2]
        target = OUT / f"{name}-{version}.cdx.json"
        list_components(python, name.replace("_", "-"), target)
        print(f"{len(json.loads(target.read_text())['components']):>4} components  {target.name}")


def list_components(python: Path, name: str, target: Path) -> None:
    """Write what the environment of `python` has, with the package `name` as the component that needs all others."""
    command = ["environment", "--output-reproducible", "--of", "JSON", "--sv", "1.6", python]
    tool = Path(sys.executable).with_name("cyclonedx-py")
    listed = json.loads(subprocess.run([tool, *command], check=True, capture_output=True).stdout)
    (main_component,) = [component for component in listed["components"] if component["name"] == name]
    listed["components"].remove(main_component)
    listed.setdefault("metadata", {})["component"] = main_component
    text = json.dumps(listed, indent=2, sort_keys=True) + "\n"

    (site,) = python.parents[1].glob("lib/python*/site-packages")
    installed = {f"{found.name}=={found.version}" for found in distributions(path=[str(site)])}
    components = [main_component, *listed["components"]]
    if installed != {f"{component['name']}=={component['version']}" for component in components}:
        raise SystemExit(f"{target.name} differs from what is installed")
    if error := make_schemabased_validator(OutputFormat.JSON, SchemaVersion.V1_6).validate_str(text):
        raise SystemExit(f"{target.name} is not valid: {error}")
    if "file:" in text or str(ROOT) in text:
        raise SystemExit(f"{target.name} has paths of this machine")
    target.write_text(text)


if __name__ == "__main__":
    main()
