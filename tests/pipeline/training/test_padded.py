"""What a training on padded texts asks: one document a text, and nothing behind an end that is seen."""

import numpy as np
import pytest
import torch

from tsdfm.pipeline.evaluation.measures.bounds import Asked, bound
from tsdfm.pipeline.models.causal import CausalLM
from tsdfm.pipeline.models.denoiser import Denoiser
from tsdfm.pipeline.text.ends.documents import Documents
from tsdfm.pipeline.training.losses import CausalNLL, CrossEntropy, GeneralizedKL, mean_loss
from tsdfm.pipeline.training.text_trainer import DocumentTexts, texts_of
from tsdfm.schemas.base import InputError
from tsdfm.schemas.model import CausalConfig, DenoiserConfig

END, MASK, L = 1, 7, 6
SHAPE = {"hidden_size": 16, "n_blocks": 1, "n_heads": 2, "mlp_ratio": 1}
TEXTS = torch.tensor([[2, 3, 4, END, END, END], [5, END, END, END, END, END], [2, 3, 4, 5, 6, 2], [END, 3, 4, 5, END, END]])
WRITTEN = 4 + 2 + 6 + 5


def denoiser(source="mask", end_id: int | None = END):
    torch.manual_seed(1)
    mask = source == "mask"
    found = Denoiser(DenoiserConfig(**SHAPE, vocab_size=7 + mask, length=L, cond_dim=8, source=source, mask_id=MASK if mask else None,
                                    end_id=end_id))
    for parameter in found.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return found


@pytest.mark.parametrize("kind", [CrossEntropy, GeneralizedKL])
def test_denoisers_are_asked_before_an_end_that_stands(kind):
    """By hand from the logits: masked positions with no end before them in the state; of packed texts all masked ones."""
    for end_id in (END, None):
        loss = kind(denoiser(end_id=end_id))
        rows = loss.draw(TEXTS.repeat(50, 1), torch.Generator().manual_seed(0))
        x_t, t = rows.noised()
        logprob = loss.model(x_t, t).log_softmax(-1).gather(-1, rows.tokens[..., None])[..., 0]
        nats, count = torch.zeros_like(logprob), 0
        for row, state in enumerate(x_t.tolist()):
            stands = next((i for i in range(1, L) if state[i] == END), L) if end_id else L
            for i in range(L):
                if state[i] == MASK and i < stands:
                    nats[row, i] = -logprob[row, i] * (1 if kind is CrossEntropy else float(1 / (1 - t[row])))
                    count += 1
        torch.testing.assert_close(loss(rows).sum(), nats.sum(), rtol=1e-4, atol=1e-3)
        whole = len(rows) * L if end_id is None else 50 * WRITTEN
        assert loss.count(rows) == (count if kind is CrossEntropy else whole)


def test_with_the_uniform_source_every_position_is_asked_for():
    loss = CrossEntropy(denoiser("uniform"))
    rows = loss.draw(TEXTS, torch.Generator().manual_seed(0))
    assert loss.count(rows) == TEXTS.numel() == len(loss(rows))


def test_a_causal_model_learns_a_text_to_its_end():
    torch.manual_seed(0)
    model = CausalLM(CausalConfig(**SHAPE, vocab_size=7, length=L))
    loss = CausalNLL(model, END)
    rows = loss.draw(TEXTS, torch.Generator())
    assert loss.count(rows) == WRITTEN == len(loss(rows))
    nats = -model(TEXTS).log_softmax(-1).gather(-1, TEXTS[..., None])[..., 0]
    wanted = sum(nats[row, :n].sum() for row, n in enumerate((4, 2, 6, 5)))
    torch.testing.assert_close(mean_loss(loss, TEXTS, torch.Generator()), wanted / WRITTEN)
    other = TEXTS.clone()
    other[0, 4:], other[3, 5:] = 6, 2
    assert torch.equal(loss(rows), loss(loss.draw(other, torch.Generator())))


def test_likelihood_bounds_ask_as_the_sampler_draws():
    """In one step a bound of the mask source is exact: all positions are asked. In more, none behind an end that stands."""
    model, texts = denoiser().eval().requires_grad_(False), TEXTS.numpy()
    plain = denoiser(end_id=None).eval().requires_grad_(False)
    assert bound(model, texts, Asked(1)) == pytest.approx(bound(plain, texts, Asked(1)))
    ours, others = (bound(each, texts, Asked(6)) for each in (model, plain))
    assert (ours[[0, 1]] < others[[0, 1]]).all()  # padding that is known costs nothing
    assert ours[2] == pytest.approx(others[2])  # nothing ends


def test_every_document_once_an_epoch():
    stream = torch.tensor([n for i in range(2, 12) for n in ([i] * (1 + i % 3) + [END])])
    texts = texts_of(stream, 3, 4, 7, END)
    assert isinstance(texts, DocumentTexts)
    epochs = torch.cat([texts.batch(step) for step in range(10)])[:, 0].view(4, 10)
    assert all(sorted(epoch) == list(range(2, 12)) for epoch in epochs.tolist())
    assert len({tuple(epoch) for epoch in epochs.tolist()}) == 4
    for step in (5, 0, 9):
        assert torch.equal(texts.batch(step), texts_of(stream, 3, 4, 7, END).batch(step))
    assert texts_of(stream, 3, 4, 8, END).batch(0).tolist() != texts.batch(0).tolist()
    cut = texts.documents
    assert cut.cut == sum(int(size > 3) for size in cut.sizes)


def test_too_few_documents():
    with pytest.raises(InputError, match=r"has 1 document, .*--texts packed"):
        texts_of(torch.tensor([5, 6, 7, END]), 3, 4, 0, END)


def test_other_documents_are_not_the_first_ones():
    stream = torch.tensor([n for i in range(2, 22) for n in (i, END)])
    documents = Documents(stream, END, 2)
    first, others = documents.spread(7)[:, 0].tolist(), documents.others(7)[:, 0].tolist()
    assert len(first) == 7
    assert len(others) == 7
    assert not set(first) & set(others)
    assert documents.others(20).shape == (0, 2)
    assert np.all(np.diff(others) > 0)
