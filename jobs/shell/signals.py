"""What an interrupt does. It imports next to nothing, for it has to be known before anything else is loaded.

An interrupt that comes while Python imports a library must not become an exception: the library may swallow it, or it ends in
a traceback. Nothing is half done by an import, so there the process ends at once.
"""

import os
from types import FrameType

INTERRUPTED = "interrupted; finished work is kept, the same command goes on with it"
CODE = 130
IMPORTING = "<frozen importlib._bootstrap>"  # where Python keeps the code of an import


def interrupt(number: int, frame: FrameType | None) -> None:
    """Handle a signal that asks to stop: end the process in one line if it is importing, else raise KeyboardInterrupt."""
    while frame is not None:
        if frame.f_code.co_filename == IMPORTING:
            os.write(2, f"Error: {INTERRUPTED}\n".encode())
            os._exit(CODE)
        frame = frame.f_back
    raise KeyboardInterrupt
