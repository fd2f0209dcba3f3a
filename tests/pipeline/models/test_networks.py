"""The networks: shapes, causality, the key-value cache, rotary positions, and the adaLN-zero start."""

import pytest
import torch

from tests.support import present
from tsdfm.pipeline.models.causal import CausalLM
from tsdfm.pipeline.models.denoiser import Denoiser, TimeEmbedding
from tsdfm.pipeline.models.layers import LayerNorm, merge_heads, recompute_blocks, rotary, rotate, split_heads
from tsdfm.pipeline.models.nce import NceEncoder
from tsdfm.schemas.model import CausalConfig, DenoiserConfig, NceConfig

V, L, B = 19, 11, 3
SHAPE = {"hidden_size": 24, "n_blocks": 3, "n_heads": 3, "mlp_ratio": 2}
DENOISER = DenoiserConfig(**SHAPE, vocab_size=V, length=L, cond_dim=10, source="mask", mask_id=V - 1)
CAUSAL = CausalConfig(**SHAPE, vocab_size=V, length=L, bos_id=2)


def scattered(network, seed=0):
    generator = torch.Generator().manual_seed(seed)
    for parameter in network.parameters():
        torch.nn.init.normal_(parameter, std=0.3, generator=generator)
    return network.eval().requires_grad_(False)


@pytest.fixture(scope="module")
def tokens():
    return torch.randint(V, (B, L), generator=torch.Generator().manual_seed(1))


@pytest.fixture(scope="module")
def times():
    return torch.tensor([0.0, 0.4, 1.0])


@pytest.fixture(scope="module")
def denoiser():
    return scattered(Denoiser(DENOISER))


@pytest.fixture(scope="module")
def causal():
    return scattered(CausalLM(CAUSAL))


def close(a, b):
    torch.testing.assert_close(a, b, rtol=1e-4, atol=2e-5)


# ------------------------------------------------------------------ denoiser

def test_denoiser_shapes(denoiser, tokens, times):
    assert denoiser.hidden(tokens, times).shape == (B, L, 24)
    assert denoiser(tokens, times).shape == (B, L, V)
    assert denoiser.hidden(tokens[:, :1], times).shape == (B, 1, 24)
    assert denoiser.head.weight.shape == (V, 24)
    close(denoiser(tokens, times), denoiser.head(denoiser.hidden(tokens, times)))


WANTED = {"some": [[1, 0, 0, 1], [0, 0, 0, 0], [1, 1, 1, 1]], "one": [[0, 0, 0, 0], [0, 1, 0, 0], [0, 0, 0, 0]],
          "none": [[0] * 4] * 3, "all": [[1] * 4] * 3}


def with_gradients(network, hidden):
    """Values, and the gradients of their weighted sum in all parameters."""
    weights = torch.linspace(-1, 2, hidden.numel()).view_as(hidden)
    found = torch.autograd.grad((hidden.float() * weights).sum(), list(network.trunk.parameters()), allow_unused=True)
    return [hidden, *(torch.zeros(()) if gradient is None else gradient for gradient in found)]


@pytest.mark.parametrize("wanted", WANTED)
@pytest.mark.parametrize("how", ["plain", "recompute", "bfloat16", "fused", "sigma", "one block"])
def test_hidden_at_some_positions_is_the_hidden_there(wanted, how, tokens, times):
    """Values and gradients, however blocks are run; the step is told where the model takes one."""
    config = DENOISER.model_copy(update={"conditioning": how if how in ("fused", "sigma") else DENOISER.conditioning,
                                         "step_size": how != "sigma", "n_blocks": 1 if how == "one block" else 2})
    network = scattered(Denoiser(config)).requires_grad_(True)
    where = torch.tensor(WANTED[wanted]).bool().repeat(1, L)[:, :L]
    dt = torch.full((B,), 0.25) if config.step_size else None
    full = with_gradients(network, network.hidden(tokens, times, dt)[where])
    if how == "recompute":
        recompute_blocks(network)
    with torch.autocast("cpu", torch.bfloat16, enabled=how == "bfloat16"):
        there = with_gradients(network, network.hidden_where(where, tokens, times, dt))
    for a, b in zip(there, full, strict=True):
        if how == "bfloat16":
            assert a.shape == b.shape
            assert (a.float() - b).norm() <= 0.05 * b.norm() + 1e-4
        else:
            torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5 + 1e-6 * float(b.detach().norm()))


def test_rows_of_a_batch_do_not_mix(denoiser, tokens, times):
    together = denoiser(tokens, times)
    for row in range(B):
        close(denoiser(tokens[row : row + 1], times[row : row + 1])[0], together[row])


def test_every_position_sees_every_other(denoiser, tokens, times):
    """Bidirectional: a change at either end moves all logits; so does the time."""
    base = denoiser(tokens, times)
    for position in (0, L - 1):
        changed = tokens.clone()
        changed[:, position] = (changed[:, position] + 1) % V
        assert ((denoiser(changed, times) - base).abs().amax(-1) > 1e-5).all()
    assert ((denoiser(tokens, times * 0.5 + 0.1) - base).abs().amax((1, 2)) > 1e-5).all()


def test_order_matters(denoiser, tokens, times):
    """Without positions a transformer is equivariant to permutations; this one isn't."""
    assert not torch.allclose(denoiser(tokens.flip(1), times), denoiser(tokens, times).flip(1), atol=1e-3)


def test_the_fresh_denoiser_knows_nothing(tokens, times):
    """adaLN-zero and a zero head: uniform logits, whatever x and t; but gradients reach the head."""
    network = Denoiser(DENOISER)
    assert (network(tokens, times) == 0).all()
    network(tokens, times).log_softmax(-1)[..., 0].sum().backward()
    assert present(network.head.weight.grad).abs().sum() > 0


def test_the_fresh_trunk_is_the_normalised_embedding(tokens, times):
    """All gates and modulations are zero: blocks pass through, and the time has no effect yet."""
    trunk = Denoiser(DENOISER).trunk
    expected = torch.nn.functional.layer_norm(trunk.vocab_embed(tokens), (24,))
    close(trunk(tokens, times), expected)
    assert torch.equal(trunk(tokens, times), trunk(tokens, times * 0 + 0.5))


def test_every_gate_and_modulation_starts_at_zero():
    for name, parameter in Denoiser(DENOISER).named_parameters():
        if "modulation" in name or name.startswith("head"):
            assert (parameter == 0).all(), name


def test_all_parameters_are_used(tokens, times):
    network = scattered(Denoiser(DENOISER)).requires_grad_(True)
    network(tokens, times).log_softmax(-1)[..., 0].sum().backward()
    for name, parameter in network.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.abs().sum() > 0, name


def test_dropout_only_while_training(tokens, times):
    network = scattered(Denoiser(DENOISER.model_copy(update={"dropout": 0.5})))
    assert torch.equal(network(tokens, times), network(tokens, times))
    network.train()
    assert not torch.equal(network(tokens, times), network(tokens, times))


def test_time_embedding_tells_times_apart():
    out = scattered(TimeEmbedding(10))(torch.linspace(0, 1, 65))
    assert out.shape == (65, 10)
    assert (torch.cdist(out, out) + torch.eye(65) > 1e-4).all()


def test_denoiser_takes_float64_times(denoiser, tokens, times):
    close(denoiser(tokens, times.double()), denoiser(tokens, times))


# ------------------------------------------------------------------ causal

def test_causal_shapes_and_inputs(causal, tokens):
    assert causal(tokens).shape == (B, L, V)
    shifted = causal.inputs(tokens)
    assert (shifted[:, 0] == 2).all()
    assert torch.equal(shifted[:, 1:], tokens[:, :-1])
    assert causal.head_weight is causal.embed.weight


@pytest.mark.parametrize("position", range(L))
def test_the_future_does_not_move_the_past(causal, tokens, position):
    """Logits up to and including those of token i don't see token i; all later ones do."""
    changed = tokens.clone()
    changed[:, position] = (changed[:, position] + 1) % V
    base, moved = causal(tokens), causal(changed)
    assert torch.equal(base[:, : position + 1], moved[:, : position + 1])
    assert ((base - moved)[:, position + 1 :].abs().amax(-1) > 1e-5).all()


@pytest.mark.parametrize("split", range(1, L))
def test_cache_equals_the_full_pass(causal, tokens, split):
    inputs = causal.inputs(tokens)
    full, whole = causal.hidden(inputs)
    first, past = causal.hidden(inputs[:, :split])
    second, cache = causal.hidden(inputs[:, split:], past)
    close(torch.cat([first, second], 1), full)
    for mine, theirs in zip([*cache.keys, *cache.values], [*whole.keys, *whole.values], strict=True):
        close(mine, theirs)


def test_cache_in_single_tokens_equals_the_full_pass(causal, tokens):
    inputs, past, pieces = causal.inputs(tokens), None, []
    for i in range(L):
        hidden, past = causal.hidden(inputs[:, i : i + 1], past)
        pieces.append(hidden)
    close(torch.cat(pieces, 1), causal.hidden(inputs)[0])


def test_cache_prefix_takes_rows_and_positions(causal, tokens):
    """Row 2 twice and row 0, from position 4 on, on top of the first four of a longer cache."""
    inputs = causal.inputs(tokens)
    full, cache = causal.hidden(inputs)
    rows = torch.tensor([2, 2, 0])
    suffix, _ = causal.hidden(inputs[rows, 4:], cache.prefix(rows, 4))
    close(suffix, full[rows, 4:])
    assert cache.prefix(rows, 4).keys[0].shape == (3, 3, 4, 8)


# ------------------------------------------------------------------ nce

def test_nce_gives_one_logit_per_state(tokens, times):
    network = NceEncoder(NceConfig(trunk=DENOISER))
    assert (network(tokens, times) == 0).all()
    network = scattered(network)
    assert network(tokens, times).shape == (B,)
    close(network(tokens, times), network.trunk(tokens, times).mean(1) @ network.head.weight[0] + network.head.bias)
    assert network.per_token(tokens, times).shape == tokens.shape
    close(network.per_token(tokens, times).mean(1), network(tokens, times))


# ------------------------------------------------------------------ layers

def test_rotary_scores_depend_on_the_distance_only():
    """q_i . k_j for one q and one k, at every pair of positions: constant along diagonals, and not along rows."""
    q, k = torch.randn(2, 1, 1, 1, 8, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    cos, sin = (x.double() for x in rotary(12, 8, torch.device("cpu")))
    scores = (rotate(q.expand(1, 1, 12, 8), cos, sin) @ rotate(k.expand(1, 1, 12, 8), cos, sin).transpose(-1, -2))[0, 0]
    for distance in range(-11, 12):
        diagonal = scores.diagonal(distance)
        torch.testing.assert_close(diagonal, diagonal[:1].expand_as(diagonal), rtol=0, atol=1e-5)
    assert scores[0].std() > 0.1


def test_rotary_keeps_lengths_and_leaves_position_zero():
    x = torch.randn(2, 3, 12, 8, generator=torch.Generator().manual_seed(0))
    cos, sin = rotary(12, 8, torch.device("cpu"))
    turned = rotate(x, cos, sin)
    close(turned.norm(dim=-1), x.norm(dim=-1))
    close(turned[:, :, 0], x[:, :, 0])


def test_rotary_is_a_rotation_by_its_published_angles():
    """Su et al. 2021: channel pair (i, i + d/2) of position m turns by m * 10000^(-2i/d)."""
    x = torch.randn(1, 1, 6, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    turned = rotate(x, *(c.double() for c in rotary(6, 4, torch.device("cpu"))))
    for m in range(6):
        for i in range(2):
            angle = torch.tensor(m * 10_000 ** (-2 * i / 4), dtype=torch.float64)
            a, b = x[0, 0, m, i], x[0, 0, m, i + 2]
            torch.testing.assert_close(turned[0, 0, m, i], a * angle.cos() - b * angle.sin(), rtol=0, atol=1e-5)
            torch.testing.assert_close(turned[0, 0, m, i + 2], a * angle.sin() + b * angle.cos(), rtol=0, atol=1e-5)


def test_heads_split_and_merge():
    x = torch.arange(2 * 3 * 8.0).view(2, 3, 8)
    assert split_heads(x, 4).shape == (2, 4, 3, 2)
    assert torch.equal(split_heads(x, 4)[1, 2, 0], x[1, 0, 4:6])
    assert torch.equal(merge_heads(split_heads(x, 4)), x)


def test_layer_norm_computes_in_float32():
    x = (torch.randn(4, 64, generator=torch.Generator().manual_seed(0)) * 1e3).half()
    out = LayerNorm(64)(x)
    assert out.dtype == torch.float16
    torch.testing.assert_close(out, torch.nn.functional.layer_norm(x.float(), (64,)).half())
