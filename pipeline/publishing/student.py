"""Publish a student: a model repository of the Hub with the model folder's files, and a card with the results of `evaluate`.

`training.json` and the card name datasets and models by where they were on this machine; of such a path only the last part is
published. Weights and tokenizer travel as they are, and so does the config, but for the fields by which the transformers
library finds its class in the file of code beside it; the fingerprint is that of the folder.
"""

import json
from pathlib import Path
from typing import Any

from tsdfm.pipeline.models.denoiser import Denoiser
from tsdfm.pipeline.models.folder import CARD_FILE, CONFIG_FILE, TRAINING_FILE, WEIGHTS_FILE, ModelFolder, load_denoiser
from tsdfm.pipeline.publishing.bundle import bundled
from tsdfm.pipeline.publishing.receipt import check_receipt, leave_receipt
from tsdfm.pipeline.publishing.student_card import Published, published_student_card
from tsdfm.pipeline.publishing.upload import Upload
from tsdfm.pipeline.storage.hub.client import check_login
from tsdfm.pipeline.storage.store import LocalStore
from tsdfm.pipeline.text.vocabulary import FILE as TOKENIZER_FILE
from tsdfm.pipeline.text.vocabulary import Vocabulary
from tsdfm.schemas.base import InputError, parse_json, to_json
from tsdfm.schemas.evaluate import Results
from tsdfm.schemas.model import MODELING, for_transformers, own_config
from tsdfm.schemas.paths import redacted
from tsdfm.schemas.progress import Progress, unheard
from tsdfm.schemas.publish import PublishConfig, Receipt
from tsdfm.schemas.regular import read_regular
from tsdfm.schemas.training_record import StudentRecord

RESULTS_FILE, FRONTIER_FILE = "results.json", "frontier.png"
CODE_FILE, TOKENIZER_CONFIG_FILE = f"{MODELING}.py", "tokenizer_config.json"
_OWNED = {CONFIG_FILE, WEIGHTS_FILE, TOKENIZER_FILE, TRAINING_FILE, FRONTIER_FILE, CODE_FILE, TOKENIZER_CONFIG_FILE}


def publish_student(folder: Path, config: PublishConfig, progress: Progress = unheard) -> Receipt:
    """Bring a repository up to date with a student, and leave the receipt in its folder.

    Raises InputError (not a student, an evaluation of something else, the login, name or repository not fit: nothing was sent),
    or WorkError (what arrived is kept, the same call goes on).
    """
    opened = load_denoiser(folder)
    network = opened.network
    if not network.config.step_size:
        raise InputError(f"{folder}: holds a teacher; publish takes finished datasets and students")
    record = without_folders(_record(folder))
    results, frontier = _evaluation(config.evaluation, opened.fingerprint)
    check_receipt(LocalStore(folder))
    check_login(config.repo)
    files = {name: read_regular(folder / name) for name in (WEIGHTS_FILE, CONFIG_FILE, TOKENIZER_FILE)}
    files[CONFIG_FILE] = own_config(files[CONFIG_FILE])
    beside = transformers_files(opened, files[CONFIG_FILE])
    card = published_student_card(Published(
        network.config, record, opened.fingerprint, config, results, frontier=bool(frontier), transformers=bool(beside)))
    upload = Upload(config.repo, "model", f"Student {opened.fingerprint[:16]}")
    upload.open(config.private, TRAINING_FILE, StudentRecord, _OWNED)
    progress("uploading", 0, 1)
    revision = upload.finish({
        **files, **beside, TRAINING_FILE: to_json(record).encode(), **frontier,
        CARD_FILE: card.encode()}, _OWNED.__contains__)
    progress("uploading", 1, 1)
    return leave_receipt(LocalStore(folder), upload, revision)


def transformers_files(opened: ModelFolder[Denoiser], config: bytes) -> dict[str, bytes]:
    """What the transformers library needs to open a model, its config.json (`config`: ours) included, for any version of it.

    {} of a config that is not in our form.
    """
    extended = for_transformers(config)
    if extended is None:
        return {}
    code = bundled(f"tsdfm.pipeline.publishing.{MODELING}").encode()
    return {CONFIG_FILE: extended, CODE_FILE: code, TOKENIZER_CONFIG_FILE: _tokenizer_config(opened)}


def _tokenizer_config(opened: ModelFolder[Denoiser]) -> bytes:
    vocabulary, config = opened.vocabulary, opened.network.config
    fields = {"tokenizer_class": "PreTrainedTokenizerFast", "model_max_length": config.length,
              "clean_up_tokenization_spaces": False, "eos_token": _token(vocabulary, vocabulary.eos_id)}
    if config.mask_id is not None:
        fields["mask_token"] = _token(vocabulary, config.mask_id)
    return (json.dumps({name: value for name, value in fields.items() if value is not None}, indent=2) + "\n").encode()


def _token(vocabulary: Vocabulary, number: int) -> str | None:
    """The entry of an id; None where the tokenizer has none, or the entry has another id."""
    token = vocabulary.tokenizer.id_to_token(number)
    return token if token is not None and vocabulary.tokenizer.token_to_id(token) == number else None


def without_folders(record: StudentRecord) -> StudentRecord:
    """A copy of a student's record in which every absolute path or file: URI is its last part, and no URI tells secrets."""
    return StudentRecord.model_validate(_bare(record.model_dump(mode="json")))


def _bare(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _bare(each) for key, each in value.items()}
    if isinstance(value, list):
        return [_bare(each) for each in value]
    if isinstance(value, str):
        return Path(value).name if value.startswith(("/", "~", "file:")) else redacted(value)
    return value


def _record(folder: Path) -> StudentRecord:
    try:
        return parse_json(StudentRecord, read_regular(folder / TRAINING_FILE), str(folder / TRAINING_FILE))
    except (OSError, InputError):
        raise InputError(f"{folder}/{TRAINING_FILE}: not the record of a distillation; "
                         "give the folder that distill wrote") from None


def _evaluation(folder: str | None, fingerprint: str) -> tuple[Results | None, dict[str, bytes]]:
    """The results of an evaluation, which must have a row of this student, and its frontier if it drew one."""
    if folder is None:
        return None, {}
    path = Path(folder)
    try:
        text = read_regular(path / RESULTS_FILE)
    except OSError:
        raise InputError(f"{folder}: no {RESULTS_FILE} there; give the folder that 'evaluate --out' wrote") from None
    results = parse_json(Results, text, f"{folder}/{RESULTS_FILE}")
    if all(row.fingerprint != fingerprint for row in results.rows):
        raise InputError(f"{folder}/{RESULTS_FILE}: has no row of this student ({fingerprint[:16]}); "
                         "run evaluate with --model and its folder")
    frontier = path / FRONTIER_FILE
    drawn = results.settings.frontier and frontier.is_file()
    return results, {FRONTIER_FILE: read_regular(frontier)} if drawn else {}
