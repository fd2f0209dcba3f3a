"""What went wrong while publishing to the Hub, in one line: the user's to mend (InputError), or to try again (WorkError).

No line holds an address of a request, a header or a token.
"""

import contextlib
import re
from collections.abc import Iterator

from tsdfm.schemas.base import InputError, WorkError

GO_ON = "what arrived is kept; the same command goes on"
_QUOTA = re.compile(r"quota|storage (space )?limit|storage is full|out of storage|payment required", re.IGNORECASE)
_TRANSPORTS = ("httpx", "httpx2", "httpcore", "httpcore2", "requests", "urllib3")  # the client's HTTP library, by its age
_WORDS = 160  # characters of the Hub's own words


@contextlib.contextmanager
def explained(repo: str) -> Iterator[None]:
    """Turn what the Hub's client raises into InputError or WorkError. What is no failure of the Hub passes."""
    try:
        yield
    except (InputError, WorkError):
        raise
    except Exception as error:
        mended = _explain(repo, error)
        if mended is None:
            raise
        raise mended from None


def no_login(repo: str) -> InputError:
    """There is no token at all."""
    return InputError(f"{repo}: not logged in to the Hub; run 'hf auth login', or set HF_TOKEN, with a token that may write")


def _explain(repo: str, error: Exception) -> InputError | WorkError | None:
    from huggingface_hub import errors

    chain = list(_causes(error))
    said = next((words for each in chain if (words := _server_words(each))), _words(error))
    status = next((found for each in chain if (found := _status(each)) is not None), None)
    if any(isinstance(each, errors.LocalTokenNotFoundError) for each in chain):
        return no_login(repo)
    if isinstance(error, errors.HFValidationError):
        return InputError(f"{repo}: can't be a repository's name; write USER/NAME with letters, digits, '-', '_' and '.'")
    if _words(error).startswith("Invalid metadata in README.md"):
        return InputError(f"{repo}: the Hub refuses the card ({_words(error).partition('- ')[2]:.{_WORDS}}); "
                          "give a --license of its list, e.g. apache-2.0")
    if status in (402, 413) or _QUOTA.search(said):
        return WorkError(f"{repo}: the Hub's storage quota is used up; free some space or raise it; {GO_ON}")
    if status is not None:
        return _of_status(repo, status, said)
    if any(type(each).__module__.partition(".")[0] in _TRANSPORTS or isinstance(each, OSError) for each in chain):
        return WorkError(f"{repo}: the connection to the Hub was lost ({type(chain[-1]).__name__}); {GO_ON}")
    if isinstance(error, RuntimeError | ValueError):  # the client's words for an upload that failed
        return WorkError(f"{repo}: the upload failed ({said:.{_WORDS}}); {GO_ON}")
    return None


def _of_status(repo: str, status: int, said: str) -> InputError | WorkError:
    if status == 401:
        return InputError(f"{repo}: the Hub refused the login (HTTP 401): the token is wrong or has expired; "
                          "run 'hf auth login', or renew HF_TOKEN, which goes first")
    if status == 403:
        return InputError(f"{repo}: the login may not write there (HTTP 403); take a name of your own, or a token with the "
                          "right to write")
    if status == 404:
        return InputError(f"{repo}: no such repository, or the login may not see it; check the name and the login")
    if status in (409, 412):
        return WorkError(f"{repo}: somebody else changed the repository meanwhile (HTTP {status}); "
                         "see that one run at a time publishes there, then run the same command again")
    if status == 429 or status >= 500:
        return WorkError(f"{repo}: the Hub answered HTTP {status}; try again later: {GO_ON}")
    return WorkError(f"{repo}: the Hub answered HTTP {status} ({said:.{_WORDS}}); {GO_ON}")


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
