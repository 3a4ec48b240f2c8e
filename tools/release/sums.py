"""The files of build/dist -> SHA256SUMS beside them, as `sha256sum --check` reads it."""

import hashlib

from tools.release.clean import OUT


def main() -> None:
    files = sorted(file for file in OUT.iterdir() if file.name != "SHA256SUMS")
    lines = [f"{hashlib.sha256(file.read_bytes()).hexdigest()}  {file.name}\n" for file in files]
    (OUT / "SHA256SUMS").write_text("".join(lines))
    print(*lines, sep="", end="")


if __name__ == "__main__":
    main()
