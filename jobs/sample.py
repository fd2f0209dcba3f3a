"""`tsdfm-pipeline sample`: texts from a model, as inference makes them."""

import torch

from tsdfm.pipeline.checkpoint import load_denoiser
from tsdfm.pipeline.models import teacher_folder
from tsdfm.pipeline.rollout import roll_out
from tsdfm.schemas.base import InputError
from tsdfm.schemas.generate import RolloutConfig, ShapingConfig
from tsdfm.schemas.model import Source


def sample(model: str, source: Source | None, rollout: RolloutConfig, number: int) -> list[str]:
    """`number` decoded texts of a model; ids 0..number-1 of the seed. Raises InputError."""
    teacher, checkpoint = load_denoiser(teacher_folder(model, source))
    if rollout.length is not None and rollout.length > teacher.config.length:
        raise InputError(f"--length: {rollout.length} is longer than the model's {teacher.config.length}; "
                         "give a length up to that")
    teacher.to(torch.device("cuda" if torch.cuda.is_available() else "cpu"))
    texts = []
    for start in range(0, number, rollout.batch_size):
        ids = range(start, min(start + rollout.batch_size, number))
        logs = roll_out(teacher, None, rollout, ShapingConfig(candidates=1), ids, "blind")
        texts += [checkpoint.vocabulary.decode(log.tokens.tolist()) for log in logs]
    return texts
