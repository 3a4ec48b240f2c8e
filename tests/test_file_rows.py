"""Records of several files: their numbers are added up, and must fit into 64 bits."""

import pytest

from mixserve.sources.file_rows import FileRows


def test_the_files_of_a_source_have_fewer_than_2_to_the_63_records():
    assert len(FileRows([1 << 62, (1 << 62) - 1])) == (1 << 63) - 1
    with pytest.raises(ValueError, match=r"9,223,372,036,854,775,808 records in all, and a source may have 2\^63 - 1"):
        FileRows([1 << 62, 1 << 62])
