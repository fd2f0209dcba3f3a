"""Likelihood bounds against enumeration: exact where they must be, above the exact likelihood elsewhere, and of pretraining's size."""

import itertools

import numpy as np
import pytest
import torch

from tsdfm.pipeline.evaluation.measures import bounds
from tsdfm.pipeline.evaluation.measures.bounds import Asked, bound
from tsdfm.pipeline.models.folder import embedded, load_denoiser
from tsdfm.pipeline.models.student import student_of
from tsdfm.pipeline.training.losses import GeneralizedKL

COPIES = 1500  # of each text: what is estimated is averaged over so many


def states(vocab, length):
    return list(itertools.product(range(vocab), repeat=length))


def exact_nats(table, source, mask, steps):
    """-log p(x) of every state after N steps of the sampler, by matrices over all states; `table` [V^L, L, V] logits."""
    count, length, vocab = table.shape
    every = states(vocab, length)
    logits = table.double().clone()
    if mask is not None:
        logits[..., mask] = -torch.inf
    posterior = logits.softmax(-1).numpy()
    p = np.array([all(v == mask for v in x) if source == "mask" else 1.0 for x in every], float)
    p /= p.sum()
    for step in range(steps):
        g = 1 - (1 - (step + 1) / steps) / (1 - step / steps)
        kernel = np.ones((count, count))
        for a, x in enumerate(every):
            for b, y in enumerate(every):
                for i in range(length):
                    rings = g if mask is None or x[i] == mask else 0.0
                    kernel[a, b] *= rings * posterior[a, i, y[i]] + (1 - rings) * (x[i] == y[i])
        p = p @ kernel
    with np.errstate(divide="ignore"):
        return -np.log(p)


def true_posterior(law, source, mask, t=None):
    """Logits [V^L, L, V] of p(x_1^i | x_t): of the mask source whatever t is, of the uniform one at kappa = t."""
    length, vocab = round(np.log(law.size) / np.log(law.shape[0])), law.shape[0]
    table = np.full((vocab**length, length, vocab), -40.0)
    for number, x in enumerate(states(vocab, length)):
        weight = np.zeros(law.shape)
        for y in states(vocab, length):
            if source == "mask":
                seen = float(all(a in (b, mask) for a, b in zip(x, y, strict=True)))
            else:
                seen = np.prod([t * (a == b) + (1 - t) / vocab for a, b in zip(x, y, strict=True)])
            weight[y] = law[y] * seen
        for i in range(length):
            p = weight.sum(tuple(j for j in range(length) if j != i))
            if p.sum() > 0:
                table[number, i] = np.log(np.maximum(p / p.sum(), 1e-17))
    return torch.from_numpy(table).float()


def estimated(denoiser, texts, steps, seed=0):
    """Mean bounds of texts, and their standard errors."""
    many = np.repeat(np.array(texts), COPIES, axis=0)
    found = bound(denoiser, many, Asked(steps, seed=seed, batch_size=4096)).reshape(len(texts), COPIES)
    return found.mean(1), found.std(1, ddof=1) / np.sqrt(COPIES) + 1e-6


SPACES = pytest.mark.parametrize(("source", "vocab", "mask", "length"), [
    ("mask", 3, 2, 2), ("mask", 4, 0, 1), ("uniform", 2, None, 2), ("uniform", 3, None, 1)])


@SPACES
@pytest.mark.parametrize("steps", [1, 2, 5, 12])
def test_no_text_is_likelier_than_its_bound_allows(toys, source, vocab, mask, length, steps):
    """Of any posterior, in any number of steps, also where steps are drawn: 12 are more than a text's draws."""
    table = 1.3 * torch.randn(vocab**length, length, vocab, generator=torch.Generator().manual_seed(3))
    denoiser = toys[0](table[None].expand(3, -1, -1, -1).contiguous(), source, mask)
    texts = [x for x in states(vocab, length) if mask not in x]
    exact = exact_nats(table, source, mask, steps)
    wanted = np.array([exact[sum(v * vocab ** (length - 1 - i) for i, v in enumerate(x))] for x in texts])
    found, error = estimated(denoiser, texts, steps)
    assert (found > wanted - 4 * error).all(), (found, wanted, error)
    if source == "mask" and (steps == 1 or length == 1):
        np.testing.assert_allclose(found, wanted, atol=1e-5 + 4 * error.max())


def test_drawing_steps_estimates_what_all_steps_give(toys, monkeypatch):
    for source, vocab, mask in (("mask", 3, 2), ("uniform", 2, None)):
        table = 1.3 * torch.randn(vocab**2, 2, vocab, generator=torch.Generator().manual_seed(3))
        denoiser = toys[0](table[None].expand(3, -1, -1, -1).contiguous(), source, mask)
        texts = [x for x in states(vocab, 2) if mask not in x]
        drawn, error = estimated(denoiser, texts, 12)
        with monkeypatch.context() as patched:
            patched.setattr(bounds, "DRAWS", 12)
            whole, less = estimated(denoiser, texts, 12, seed=1)
        assert (np.abs(drawn - whole) < 4.5 * np.hypot(error, less)).all()


LAW = np.array([[0.4, 0.05], [0.15, 0.4]])


def test_an_exact_posterior_of_the_mask_source_has_the_exact_likelihood_in_continuous_time(toys):
    law = np.pad(LAW, ((0, 1), (0, 1)))
    denoiser = toys[0](true_posterior(law, "mask", 2)[None].expand(3, -1, -1, -1).contiguous(), "mask", 2)
    texts = states(2, 2)
    found, error = estimated(denoiser, texts, None)
    np.testing.assert_allclose(found, [-np.log(LAW[x]) for x in texts], atol=4.5 * error.max())
    assert error.max() < 0.02  # which is small: no draw outweighs the others
    few = estimated(denoiser, texts, 2)[0]
    chance = LAW.ravel()
    assert chance @ few > chance @ found + 0.01  # two steps cost something


def test_continuous_time_is_its_integral(toys):
    """By quadrature over u = -log(1 - kappa), with all states of each time weighted by their probability."""
    for source, vocab, mask in (("mask", 3, 2), ("uniform", 2, None)):
        table = 0.8 * torch.randn(vocab**2, 2, vocab, generator=torch.Generator().manual_seed(4))
        denoiser = toys[0](table[None].expand(3, -1, -1, -1).contiguous(), source, mask)
        texts = [x for x in states(vocab, 2) if mask not in x]
        found, error = estimated(denoiser, texts, None)
        wanted = [integral(table, x, mask) for x in texts]
        np.testing.assert_allclose(found, wanted, atol=4.5 * error.max() + 1e-3)


def integral(table, x, mask):
    """The bound of a text in continuous time; `table` [V^L, L, V] logits whatever t is."""
    _, length, vocab = table.shape
    logits = table.double().clone()
    if mask is not None:
        logits[..., mask] = -torch.inf
    p = logits.softmax(-1).numpy()
    u = np.linspace(0, -np.log(1e-3) if mask is None else 20, 4001)
    kappa = 1 - np.exp(-u)
    rate, last = np.zeros(len(u)), 0.0
    for number, state in enumerate(states(vocab, length)):
        chance = np.ones(len(u))
        for a, b in zip(state, x, strict=True):
            chance = chance * (kappa * (a == b) + (1 - kappa) * (1 / vocab if mask is None else a == mask))
        for i in range(length):
            here = p[number, i]
            if mask is not None:
                rate += chance * (state[i] == mask) * -np.log(here[x[i]])
            else:
                rate += chance * (1 - here[x[i]] if state[i] == x[i] else -np.log(here[x[i]]) - here[state[i]])
                last += chance[-1] * -np.log(here[x[i]])
    return np.trapezoid(rate, u) + last  # d kappa / (1 - kappa) = du


def test_an_exact_posterior_of_the_uniform_source_is_above_the_exact_likelihood_and_better_than_another(toys):
    times = 41
    table = torch.stack([true_posterior(LAW, "uniform", None, t) for t in np.linspace(0, 1, times).clip(1e-9, 1 - 1e-9)])
    texts, chance = states(2, 2), LAW.ravel()
    found, _ = estimated(toys[0](table, "uniform", None), texts, 20)
    entropy = -chance @ np.log(chance)
    assert entropy < chance @ found
    worse = estimated(toys[0](0.5 * table, "uniform", None), texts, 20)[0]
    assert chance @ worse > chance @ found


def test_temperature_and_kappa_are_heard(toys):
    table = 1.3 * torch.randn(9, 2, 3, generator=torch.Generator().manual_seed(3))
    cold = toys[0](table[None].expand(3, -1, -1, -1).contiguous(), "mask", 2)
    texts = np.array(states(2, 2))
    by_temperature = bound(cold, texts, Asked(4, temperature=0.5))
    scaled = toys[0]((2 * table)[None].expand(3, -1, -1, -1).contiguous(), "mask", 2)
    np.testing.assert_allclose(by_temperature, bound(scaled, texts, Asked(4)), rtol=1e-4)


def test_batches_move_nothing_and_seeds_do(toys):
    table = 1.3 * torch.randn(4, 2, 2, generator=torch.Generator().manual_seed(3))
    denoiser, texts = toys[0](table[None].expand(3, -1, -1, -1).contiguous(), "uniform", None), np.array(states(2, 2) * 5)
    once = bound(denoiser, texts, Asked(None, batch_size=1))
    np.testing.assert_allclose(bound(denoiser, texts, Asked(None, batch_size=64)), once)
    assert not np.allclose(bound(denoiser, texts, Asked(None, seed=1)), once)


@pytest.mark.parametrize("source", ["mask", "uniform"])
def test_of_the_embedded_teachers_it_is_what_pretraining_measures(source):
    """On the same texts: pretraining's figure is the mean over t below 0.999, without the last step of the uniform source."""
    opened = load_denoiser(embedded(f"teacher-{source}"))
    documents = ["This is the way in which the work was done, and it was done in the right order. There was no other way.",
                 "They are not the same, and the first of them has no name. It was made before the others were made.",
                 "If the end is not in the place where it was, then the way to it is not open, and all of them have to go back."] * 10
    stream = torch.from_numpy(opened.vocabulary.stream(documents)).long()
    texts = stream[: len(stream) // 64 * 64].view(-1, 64)
    loss = GeneralizedKL(opened.network)  # whose mean `pretrain` prints, and keeps as held_out_negative_elbo
    wanted = loss(loss.draw(texts.repeat(8, 1), torch.Generator().manual_seed(0))).mean(1)
    found = bound(opened.network, texts.repeat(2, 1).numpy(), Asked(None, batch_size=64)) / 64
    error = np.hypot(float(wanted.std()) / np.sqrt(len(wanted)), found.std() / np.sqrt(len(found)))
    last = last_step(opened.network, texts) if source == "uniform" else 0.0
    assert error < 0.06 * float(wanted.mean())
    assert (found.mean() - last) / 0.999 == pytest.approx(float(wanted.mean()), abs=4 * error)


@torch.no_grad()
def last_step(network, texts):
    """Nats per token of drawing all positions at t = 0.999, where hardly any is noise."""
    logprob = network(texts, torch.full((len(texts),), 0.999)).log_softmax(-1)
    return -float(logprob.gather(-1, texts[..., None]).mean())


def test_a_student_is_told_the_step(tiny_models, monkeypatch):
    student = student_of(load_denoiser(tiny_models.mask).network)
    with torch.no_grad():
        for parameter in student.parameters():
            parameter.add_(0.02 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1)))
    texts, told = np.random.default_rng(0).integers(298, size=(4, 16)), []
    hidden = student.hidden

    def watched(x_t, t, dt=None):
        told.append(dt)
        return hidden(x_t, t, dt)

    monkeypatch.setattr(student, "hidden", watched)
    bound(student.eval(), texts, Asked(4))
    assert {float(each) for dt in told for each in dt} == {0.25}
