"""What a command says of the text that it reads: which it takes, and what was left out of it."""

from tsdfm.jobs.shell.console import say
from tsdfm.pipeline.text.cleaning import counted, told
from tsdfm.schemas.corpus import BUILT_IN, CorpusConfig
from tsdfm.schemas.training_record import CorpusFacts


def say_corpus(corpus: CorpusConfig) -> None:
    """Which text a command is about to read: the built-in one is a surprise to who gave none."""
    if corpus.path == BUILT_IN:
        say("corpus: the built-in one, English prose of the documentation of Python and of the packages installed here; "
            "--corpus takes a text of yours")
    else:
        say(f"corpus: {corpus.path}")


def say_left_out(facts: CorpusFacts | None) -> None:
    """What was left out of a text that other processes have read; nothing where nothing was, or there was no text."""
    if facts is not None and facts.left_out:
        say(f"corpus: {counted(facts.documents, 'documents')}; left out: {told(facts.left_out)}")
