"""The models that shipped with former versions of this package, by their fingerprints.

The name 'embedded' means the models of the version that is installed, while datasets and training states hold fingerprints. A
fingerprint that is not found any more may be of a former version, and this says of which.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class FormerModel:
    """A model that shipped. `name`: as in messages; `folder`: where it lies in the package of that version."""

    name: str
    version: str
    folder: str


# Whoever replaces the weights of an embedded model notes here what they were.
FORMER = {
    "2f0ea4fea8a921a4c06ac1a55c3a8946495da30a37bdeaa4cfc62ebae1d8d53a":
        FormerModel("teacher of the mask source", "0.1.0", "pipeline/assets/teacher-mask"),
    "1618758f0ab6a30b77592a82e872250be0dd933a3a6d7d181a0b55aacdefba51":
        FormerModel("teacher of the uniform source", "0.1.0", "pipeline/assets/teacher-uniform"),
    "82f052f56bc25cc3736c5278c0a46f92d6ce5a040897b67c1d7391518ce7dd6a":
        FormerModel("compass", "0.1.0", "pipeline/assets/compass"),
    "f76f30591be9d40c22d113346333fb0b6583b3132d964b5f8f0b34740267c2fc":
        FormerModel("judge", "0.1.0", "pipeline/assets/judge"),
}
FORMER_TOKENIZERS = {"a954a3290c62b7899f4af298f6724bf356b21801a159cf876131a61d75aff1ce": "0.1.0"}  # of all models of a version


def replaced(old: object, new: object = None) -> list[FormerModel]:
    """The models of former versions whose fingerprints stand in a JSON document, and not in a newer one; each once."""
    here = set(_strings(new))
    return [FORMER[each] for each in dict.fromkeys(_strings(old)) if each in FORMER and each not in here]


def told(models: Sequence[FormerModel]) -> str:
    """Words for one or more models that were replaced: which they are, of which version, and where they lie there."""
    names, folders, versions = (" and ".join(dict.fromkeys(getattr(each, field) for each in models))
                                for field in ("name", "folder", "version"))
    return f"the embedded {names} of tsdfm-pipeline {versions} ({folders} there), which this version has replaced"


def told_if_replaced(old: object, new: object) -> str:
    """The end of a message about two documents that differ; '' if the first names no model that was replaced."""
    models = replaced(old, new)
    return f"; what is there was made with {told(models)}" if models else ""


def _strings(document: object) -> Iterator[str]:
    """Every string of a JSON document, in order, but for names of fields."""
    if isinstance(document, str):
        yield document
    elif isinstance(document, dict):
        for each in document.values():
            yield from _strings(each)
    elif isinstance(document, list | tuple):
        for each in document:
            yield from _strings(each)
