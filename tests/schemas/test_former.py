"""The embedded models of former versions: the table is sound, and what it says of a document is of those alone that aren't here."""

import re
import tomllib
from pathlib import Path

import yaml

from tsdfm.schemas.former import FORMER, FORMER_TOKENIZERS, replaced, told, told_if_replaced

ROOT = Path(__file__).parents[2]
TEACHER, COMPASS = (next(key for key, model in FORMER.items() if model.folder.endswith(name)) for name in ("teacher-mask", "compass"))


def test_it_names_fingerprints_and_versions_before_this_one():
    with (ROOT / "pyproject.toml").open("rb") as file:
        version = tomllib.load(file)["project"]["version"]
    assert yaml.safe_load((ROOT / "CITATION.cff").read_text())["version"] == version
    assert all(re.fullmatch("[0-9a-f]{64}", key) for key in [*FORMER, *FORMER_TOKENIZERS])
    assert version not in {*(model.version for model in FORMER.values()), *FORMER_TOKENIZERS.values()}
    assert {model.version for model in FORMER.values()} == set(FORMER_TOKENIZERS.values())


def test_what_was_replaced_is_told_wherever_it_stands_and_only_if_it_is_not_here():
    old = {"teacher": {"fingerprint": TEACHER}, "list": [1, None, {"compass": COMPASS}], "again": TEACHER, COMPASS: "a name of a field"}
    assert replaced(old) == [FORMER[TEACHER], FORMER[COMPASS]]
    assert replaced(old, {"made_for": TEACHER}) == [FORMER[COMPASS]]
    assert replaced(old, [TEACHER, COMPASS]) == replaced({COMPASS: "other"}) == replaced("0" * 64) == []
    assert told(replaced(old)) == ("the embedded teacher of the mask source and compass of tsdfm-pipeline 0.1.0 (pipeline/assets/teacher-mask "
                                   "and pipeline/assets/compass there), which this version has replaced")
    assert told_if_replaced(old, old) == ""
    assert told_if_replaced(old, {}).startswith("; what is there was made with the embedded teacher")
