"""The science: nine rooms of code, and the public Python API, which needs neither a terminal nor Ray.

    from tsdfm.pipeline import generate_dataset, open_dataset, replay, distill, sample

Each name is imported when it is first asked for. README.md beside this file is a tour of the rooms and of the API.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tsdfm.pipeline.dataset.opened import Dataset, open_dataset, replay
    from tsdfm.pipeline.dataset.verify import verify
    from tsdfm.pipeline.evaluation.run import evaluate
    from tsdfm.pipeline.evaluation.samples import sample, score
    from tsdfm.pipeline.flow.compass import Compass
    from tsdfm.pipeline.flow.generate import generate_dataset
    from tsdfm.pipeline.loader.window_batches import batches
    from tsdfm.pipeline.models.folder import load_model
    from tsdfm.pipeline.training.distill import distill

__all__ = [
    "Compass", "Dataset", "batches", "distill", "evaluate", "generate_dataset", "load_model", "open_dataset", "replay",
    "sample", "score", "verify",
]
_PLACES = {
    "Compass": "flow.compass", "Dataset": "dataset.opened", "batches": "loader.window_batches", "distill": "training.distill",
    "evaluate": "evaluation.run", "generate_dataset": "flow.generate", "load_model": "models.folder",
    "open_dataset": "dataset.opened", "replay": "dataset.opened", "sample": "evaluation.samples", "score": "evaluation.samples",
    "verify": "dataset.verify",
}


def __getattr__(name: str) -> Any:
    if name not in _PLACES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_PLACES[name]}"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
