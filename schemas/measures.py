"""What `evaluate` finds besides the figures of every row: distances of sets of texts, and bounds of likelihoods."""

from pydantic import Field

from tsdfm.schemas.base import Frozen


class Corrected(Frozen):
    """A distance of two sets of texts, without what it is off for there being few."""

    value: float = Field(description="estimated for very many texts")
    low: float = Field(description="95 % bootstrap interval over the texts of both sets")
    high: float
    plain: float = Field(description="of just these texts, as other programs give it; too far, the fewer texts the more")


class Distances(Frozen):
    """How far some texts are from real held-out ones as sets, by one judge's features."""

    mauve: Corrected = Field(description="from 1/252 (nothing alike) to 1 (the same law of texts, as far as clusters tell)")
    clusters: int = Field(description="of MAUVE")
    frechet: Corrected = Field(description="0: the same mean and covariance; in units of the variance of real texts' features")
    texts: int = Field(description="that have a token")
    real_texts: int = Field(description="others than those of the row of real text")


class Bound(Frozen):
    """How likely a model finds some real text: an upper bound of its negative log-likelihood, estimated by sampling."""

    model: str = Field(description="as named in the config")
    fingerprint: str
    vocabulary: str = Field(description="fingerprint of the tokenizer")
    steps: int | None = Field(description="of the sampler whose likelihood is bounded; null: continuous time")
    temperature: float
    text: str = Field(description="the corpus whose held-out text it is, or the file")
    texts: int = Field(description="windows of text")
    length: int = Field(description="tokens of each")
    tokens: int
    bytes: int = Field(description="of the decoded text, in UTF-8")
    nats_per_token: float
    perplexity: float = Field(description="exp(nats per token): an upper bound, comparable between models of one tokenizer")
    low: float = Field(description="95 % bootstrap interval of it over windows")
    high: float
    bits_per_byte: float | None = Field(description="comparable between tokenizers; null where the text decodes to nothing")


class Memorised(Frozen):
    """How much of some texts stands in what models were trained on."""

    memorised: float | None = Field(None, description=(
        "share of the texts' 8-grams (of the model's tokens) that occur in the training part of the corpus; null where it was "
        "not read, or texts are shorter"))
    memorised_standard_error: float | None = Field(None, description="over texts")
    in_trajectories: float | None = Field(None, description=(
        "share of the texts' 8-grams that occur in a text of the trajectories that the student learnt from; of other rows, of "
        "the datasets that were named; absent where none was looked at"))
    in_trajectories_standard_error: float | None = Field(None, description="over texts")
