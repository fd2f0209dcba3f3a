"""Names that no file can have, or no record could say, are refused where they are given."""

import pytest

from tsdfm.schemas.base import InputError, parse, recordable
from tsdfm.schemas.distill import DataConfig
from tsdfm.schemas.generate import GenerateConfig


@pytest.mark.parametrize(("name", "words"), [
    ("t\udce9", r"'t\\udce9' is not UTF-8"), ("\ud800", "is not UTF-8"), ("A\0B", "NUL"), ("a/" + "\u00e9" * 128 + "/b", "longer than 255 bytes")])
def test_a_name_that_is_none(name, words):
    with pytest.raises(InputError, match=f"^config: out: .*{words}"):
        parse(GenerateConfig, {"out": name}, "config")
    with pytest.raises(InputError, match=f"^config: paths.1: .*{words}"):
        parse(DataConfig, {"paths": ["a", name]}, "config")
    with pytest.raises(InputError, match=words):
        recordable(name)


def test_names_as_people_have_them():
    for name in ("caf\u00e9", "\U0001f4c1/" + "a" * 255, "s3://bucket/" + "key" * 100, " "):
        assert recordable(name) == GenerateConfig(out=name).out == name
