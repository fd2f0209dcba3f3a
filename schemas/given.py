"""What the trajectories of a dataset were given, as its manifest and the record of a student tell it."""

from pydantic import Field

from tsdfm.schemas.base import Frozen, Sha256


class PromptFacts(Frozen):
    """The prompts of a dataset, as far as its rows depend on them. Trajectory i is of prompt i // per_prompt, from 0."""

    per_prompt: int = Field(ge=1, description="trajectories of each prompt; the last that is used may have fewer")
    sha256: Sha256 = Field(description="of the fixed tokens and their positions, of all prompts that are used")


class BlockFacts(Frozen):
    """How texts that are longer than the teacher's lie in trajectories: text i is trajectories i * per_text and those after it.

    The first is as any other. Each later one is given the last `overlap` tokens of the one before it, in the same arm, as its
    first, so that a text has per_text * (L - overlap) + overlap tokens. Of a teacher of padded texts it has fewer where it
    ends; the trajectory behind its end begins another text, as the first did.
    """

    per_text: int = Field(ge=2, description="trajectories, the blocks of one text, or of texts that ended before")
    overlap: int = Field(ge=1, description="tokens of a block that the next one goes on from")
