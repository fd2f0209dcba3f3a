"""The Hub's client, and the one translation of what it raises: one line, to mend (InputError) or to try again (WorkError).

No line holds an address of a request, a header or a token.
"""

import contextlib
import os
import re
from collections.abc import Iterator
from typing import TYPE_CHECKING

from tsdfm.schemas.base import InputError, WorkError

if TYPE_CHECKING:
    from huggingface_hub import HfApi

TRY_AGAIN = "try again later"
_QUOTA = re.compile(r"quota|storage (space )?limit|storage is full|out of storage|payment required", re.IGNORECASE)
_TRANSPORTS = ("httpx", "httpx2", "httpcore", "httpcore2", "requests", "urllib3")  # the client's HTTP library, by its age
_WORDS = 160  # characters of the Hub's own words


def endpoint() -> str | None:
    """The Hub's address, if the environment names another: read at each call, so that it may be set late."""
    return os.environ.get("HF_ENDPOINT") or None


def client() -> "HfApi":
    """The Hub's client at the address of the environment; its token is that of the login or of HF_TOKEN."""
    from huggingface_hub import HfApi

    return HfApi(endpoint=endpoint())


def check_login(repo: str) -> None:
    """Raises InputError if there is no login, or the Hub refuses it."""
    from huggingface_hub import get_token

    if get_token() is None:
        raise _no_login(repo)
    with explained(repo):
        client().whoami()


@contextlib.contextmanager
def explained(name: str, then: str = TRY_AGAIN) -> Iterator[None]:
    """Ask the Hub: what its client raises becomes InputError or WorkError, named by `name`. What is no failure of it passes.

    `then`: what the user is told to do where trying again is all there is to do. The client's progress bars, which would break
    into a command's own, are off meanwhile.
    """
    from huggingface_hub.utils.tqdm import are_progress_bars_disabled, disable_progress_bars, enable_progress_bars

    shown = not are_progress_bars_disabled()
    if shown:
        disable_progress_bars()
    try:
        yield
    except (InputError, WorkError):
        raise
    except Exception as error:
        mended = _explain(name, error, then)
        if mended is None:
            raise
        raise mended from None
    finally:
        if shown:
            enable_progress_bars()


def _no_login(name: str) -> InputError:
    return InputError(f"{name}: not logged in to the Hub; run 'hf auth login', or set HF_TOKEN, with a token that may write")


def _explain(name: str, error: Exception, then: str) -> InputError | WorkError | None:
    from huggingface_hub import errors

    chain = list(_causes(error))
    said = next((words for each in chain if (words := _server_words(each))), _words(error))
    status = next((found for each in chain if (found := _status(each)) is not None), None)
    refused = _refused(name, error, chain)
    if refused is not None:
        return refused
    if status in (402, 413) or _QUOTA.search(said):
        return WorkError(f"{name}: the Hub's storage quota is used up; free some space or raise it; {then}")
    if isinstance(error, errors.RepositoryNotFoundError):  # to a stranger, the Hub answers 401 for these
        return _of_status(name, 404, said, then)
    if status is not None:
        return _of_status(name, status, said, then)
    if any(type(each).__module__.partition(".")[0] in _TRANSPORTS or isinstance(each, OSError) for each in chain):
        return WorkError(f"{name}: the Hub can't be reached ({type(chain[-1]).__name__}); check the network, HF_ENDPOINT and "
                         f"HF_HUB_OFFLINE; {then}")
    if isinstance(error, RuntimeError | ValueError):  # the client's words for a transfer that failed
        return WorkError(f"{name}: the transfer failed ({said:.{_WORDS}}); {then}")
    return None


def _refused(name: str, error: Exception, chain: list[BaseException]) -> InputError | None:
    """What the user has to mend, where the client's error tells it by its class or words; else None."""
    from huggingface_hub import errors

    if any(isinstance(each, errors.LocalTokenNotFoundError) for each in chain):
        return _no_login(name)
    if isinstance(error, errors.HFValidationError):
        return InputError(f"{name}: can't be a repository's name; write USER/NAME with letters, digits, '-', '_' and '.'")
    if isinstance(error, errors.GatedRepoError):
        return InputError(f"{name}: access is gated; ask for it on its page of the Hub, then run 'hf auth login', "
                          "or set HF_TOKEN")
    if isinstance(error, errors.RevisionNotFoundError):
        return InputError(f"{name}: no such revision; give a branch, a tag or a commit of the repository")
    if any(_words(each).startswith("Invalid filename") for each in chain):
        return InputError(f"{name}: the repository has a file whose name leads out of it ({_words(error):.{_WORDS}}); ask its "
                          "owner to rename it, or give another")
    if _words(error).startswith("Invalid metadata in README.md"):
        return InputError(f"{name}: the Hub refuses the card ({_words(error).partition('- ')[2]:.{_WORDS}}); "
                          "give a --license of its list, e.g. apache-2.0")
    return None


def _of_status(name: str, status: int, said: str, then: str) -> InputError | WorkError:
    if status == 401:
        return InputError(f"{name}: the Hub refused the login (HTTP 401): the token is wrong or has expired; "
                          "run 'hf auth login', or renew HF_TOKEN, which goes first")
    if status == 403:
        return InputError(f"{name}: the login may not do that (HTTP 403); take a name of your own, or another token")
    if status == 404:
        return InputError(f"{name}: no such repository, or it is private; check the name, and run 'hf auth login', or set "
                          "HF_TOKEN, if it is yours")
    if status in (409, 412):
        return WorkError(f"{name}: somebody else changed the repository meanwhile (HTTP {status}); "
                         "see that one run at a time publishes there, then run the same command again")
    if status == 429 or status >= 500:
        return WorkError(f"{name}: the Hub answered HTTP {status}; {then}")
    return WorkError(f"{name}: the Hub answered HTTP {status} ({said:.{_WORDS}}); {then}")


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    """An error and what it was raised from, outermost first."""
    while error is not None:
        yield error
        error = error.__cause__


def _status(error: BaseException) -> int | None:
    status = getattr(getattr(error, "response", None), "status_code", None)
    return status if isinstance(status, int) else None


def _server_words(error: BaseException) -> str:
    """The Hub's own words, if there are any."""
    return " ".join(str(getattr(error, "server_message", None) or "").split())


def _words(error: BaseException) -> str:
    """The client's words, without addresses."""
    return re.sub(r"\S*://\S*", "", " ".join(str(error).split()))
