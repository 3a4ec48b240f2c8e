"""The lines of docs/first-run.md that need the library `tokenizers`."""

from pathlib import Path

import numpy as np

from tests.examples.page import Reader, blocks, named

PYTHON = [text for language, text in blocks("first-run.md") if language == "python"]


def file(name):
    (text,) = (text for text in PYTHON if named(text) == name)
    return text


def test_a_trained_tokenizer_takes_the_place_of_bytes(tmp_path):
    (replacing,) = (text for text in PYTHON if "Tokenizer.from_file" in text)
    prepare = file("prepare.py")
    begin, end = prepare.index("END = "), prepare.index("\n\nif __name__")
    with Reader(tmp_path) as reader:
        for text in (file("get_texts.py"), file("train_tokenizer.py")):
            reader.write(text)
            reader.run(f"python {named(text)}")
        reader.write(prepare[:begin] + replacing + prepare[end:])
        reader.run("python prepare.py")
        ids = np.fromfile(tmp_path / "tokens/train/prose.bin", np.uint16)
        first = ids[: np.argmax(ids == 0)].tolist()
        text = Path(tmp_path, "texts/prose/001.txt").read_text()
        assert len(first) < len(text) / 2
        reader.run_python(
            "from prepare import END, VOCABULARY, encode, tokenizer\n"
            "assert (END, VOCABULARY) == (0, 4096)\n"
            "assert END not in encode('a<|end|>b')\n"
            f"assert tokenizer.decode({first}) == {text!r}\n"
        )
        assert np.count_nonzero(ids == 0) == 72
