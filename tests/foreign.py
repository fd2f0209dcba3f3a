"""FS-DFM, MDLM and Duo restated in plain torch on dicts of tensors, with random small checkpoints, and a tokenizer like GPT-2's."""

import itertools
import math

import torch
import torch.nn.functional as F
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors

WIDTH, HEADS, BLOCKS, COND = 16, 2, 2, 12


def random_weights(layout: str, rows: int, *, student: bool = False, seed: int = 0) -> dict[str, torch.Tensor]:
    """A checkpoint with the names and shapes of a layout."""
    generator = torch.Generator().manual_seed(seed)
    shapes: dict[str, tuple[int, ...]] = {"vocab_embed.weight" if layout == "fs-dfm" else "vocab_embed.embedding": (rows, WIDTH)}

    def dense(name, out, into, bias=True):
        shapes[f"{name}.weight"] = (out, into)
        if bias:
            shapes[f"{name}.bias"] = (out,)

    for name in {"fs-dfm": ["time_embedding", *(["dt_embedding"] if student else [])], "mdlm": ["sigma_map"]}[layout]:
        dense(f"{name}.mlp.0", COND, 256)
        dense(f"{name}.mlp.2", COND, COND)
    if student:
        dense("time_condition_fuser", 2 * COND, 2 * COND)
    for block in (f"blocks.{i}" for i in range(BLOCKS)):
        for name in ("norm1", "norm2"):
            shapes[f"{block}.{name}.weight"] = (WIDTH,)
        for name, out in {"fs-dfm": [("qw", 1), ("kw", 1), ("vw", 1)], "mdlm": [("attn_qkv", 3)]}[layout]:
            dense(f"{block}.{name}", out * WIDTH, WIDTH, bias=False)
        dense(f"{block}.attn_out", WIDTH, WIDTH, bias=False)
        dense(f"{block}.mlp.0", 4 * WIDTH, WIDTH)
        dense(f"{block}.mlp.2", WIDTH, 4 * WIDTH)
        dense(f"{block}.adaLN_modulation", 6 * WIDTH, COND)
        if student:
            dense(f"{block}.condition_fuser", COND, 2 * COND)
    shapes["output_layer.norm_final.weight"] = (WIDTH,)
    dense("output_layer.linear", rows, WIDTH)
    dense("output_layer.adaLN_modulation", 2 * WIDTH, COND)
    if student:
        dense("output_layer.condition_fuser", COND, 2 * COND)
    weights = {name: 0.2 * torch.randn(shape, generator=generator) for name, shape in shapes.items()}
    half = WIDTH // HEADS // 2
    return weights | {"rotary_emb.inv_freq": torch.tensor([10_000 ** (-i / half) for i in range(half)])}


def _dense(w, name, x):
    return x @ w[f"{name}.weight"].T + w.get(f"{name}.bias", torch.zeros(1))


def _embed_scalar(w, name, value):
    """Sinusoids of a scalar per sequence, cosines first, then two layers with SiLU between."""
    angle = value[:, None] * torch.tensor([10_000 ** (-i / 128) for i in range(128)])
    return _dense(w, f"{name}.mlp.2", F.silu(_dense(w, f"{name}.mlp.0", torch.cat([angle.cos(), angle.sin()], 1))))


def _norm(w, name, x):
    centred = x - x.mean(-1, keepdim=True)
    return centred / (centred.square().mean(-1, keepdim=True) + 1e-5).sqrt() * w[f"{name}.weight"]


def _turn(x):
    """Rotary: channel i of the first half and of the second are a point, turned by position * 10000^(-i / half)."""
    half = x.shape[-1] // 2
    position = torch.arange(x.shape[1]).float()[:, None]
    angle = (position * torch.tensor([10_000 ** (-i / half) for i in range(half)]))[None, :, None]
    a, b = x[..., :half], x[..., half:]
    return torch.cat([a * angle.cos() - b * angle.sin(), b * angle.cos() + a * angle.sin()], -1)


def _gelu(x):
    return 0.5 * x * (1 + torch.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))


def _body(w, x, qkv_of, mixed):
    """Blocks and final layer; `mixed(name)`: what adaLN of a layer is given."""
    batch, length = x.shape[:2]
    for i in range(BLOCKS):
        block = f"blocks.{i}"
        shift1, scale1, gate1, shift2, scale2, gate2 = _dense(w, f"{block}.adaLN_modulation", mixed(block))[:, None].chunk(6, -1)
        q, k, v = (part.view(batch, length, HEADS, WIDTH // HEADS)
                   for part in qkv_of(block, _norm(w, f"{block}.norm1", x) * (1 + scale1) + shift1))
        scores = torch.einsum("blhd,bmhd->bhlm", _turn(q), _turn(k)) / math.sqrt(WIDTH // HEADS)
        attended = torch.einsum("bhlm,bmhd->blhd", scores.softmax(-1), v).reshape(batch, length, WIDTH)
        x = x + gate1 * _dense(w, f"{block}.attn_out", attended)
        inner = _gelu(_dense(w, f"{block}.mlp.0", _norm(w, f"{block}.norm2", x) * (1 + scale2) + shift2))
        x = x + gate2 * _dense(w, f"{block}.mlp.2", inner)
    shift, scale = _dense(w, "output_layer.adaLN_modulation", mixed("output_layer"))[:, None].chunk(2, -1)
    return _dense(w, "output_layer.linear", _norm(w, "output_layer.norm_final", x) * (1 + scale) + shift)


def fsdfm_logits(w, tokens, t, dt=None):
    """FS-DFM (arXiv 2509.20624): t, and of a student dt, fused."""
    c = _embed_scalar(w, "time_embedding", t)
    student = "dt_embedding.mlp.0.weight" in w
    c = F.silu(_dense(w, "time_condition_fuser", torch.cat([c, _embed_scalar(w, "dt_embedding", dt)], 1)) if student else c)

    def mixed(name):
        return F.silu(_dense(w, f"{name}.condition_fuser", c)) if student else c

    return _body(w, w["vocab_embed.weight"][tokens], lambda block, x: [_dense(w, f"{block}.{n}", x) for n in ("qw", "kw", "vw")], mixed)


def mdlm_logits(w, tokens, sigma):
    """MDLM (arXiv 2406.07524): sigma; q, k, v in one matrix, thirds."""
    c = F.silu(_embed_scalar(w, "sigma_map", sigma))
    return _body(w, w["vocab_embed.embedding"][tokens], lambda block, x: _dense(w, f"{block}.attn_qkv", x).chunk(3, -1), lambda _: c)


def duo_log_probabilities(w, tokens, alpha):
    """Duo (arXiv 2506.10892): MDLM's network, told sigma = -log alpha, where a token is itself with probability alpha + (1 - alpha)/V."""
    return mdlm_logits(w, tokens, -alpha.log()).log_softmax(-1)


def gpt2_like(merges: int) -> Tokenizer:
    """A byte-level BPE with 256 + merges + 1 ids, <|endoftext|> last; 50,000 merges make GPT-2's 50,257."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    pairs = list(itertools.islice(itertools.product(alphabet, alphabet), merges))
    ids = {token: number for number, token in enumerate([*alphabet, *(a + b for a, b in pairs)])}
    tokenizer = Tokenizer(models.BPE(ids, pairs))
    tokenizer.pre_tokenizer, tokenizer.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    tokenizer.add_special_tokens(["<|endoftext|>"])
    return tokenizer


def bert_like(mask: str = "[MASK]") -> Tokenizer:
    """A WordPiece of 57 ids, [PAD], [UNK], [CLS], [SEP] and the mask first, which puts [CLS] and [SEP] around a text."""
    letters = [chr(ord("a") + number) for number in range(26)]
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", mask, *letters, *(f"##{letter}" for letter in letters)]
    tokenizer = Tokenizer(models.WordPiece({word: number for number, word in enumerate(words)}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer, tokenizer.decoder = pre_tokenizers.Whitespace(), decoders.WordPiece()
    tokenizer.add_special_tokens(words[:5])
    tokenizer.post_processor = processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    return tokenizer


def masked_lm(folder, kind: str, **changes):
    """A tiny masked language model of transformers with random weights, saved with its tokenizer; its rows are padded to 64."""
    import transformers

    sizes = {"vocab_size": 64, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64,
             "max_position_embeddings": 40, "pad_token_id": 0}
    if kind == "ModernBert":
        sizes |= {"cls_token_id": 2, "sep_token_id": 3, "bos_token_id": 2, "eos_token_id": 3, "local_attention": 8}
    if kind == "Roberta":
        sizes["pad_token_id"] = 1
    model = getattr(transformers, f"{kind}ForMaskedLM")(getattr(transformers, f"{kind}Config")(**sizes | changes)).eval()
    generator = torch.Generator().manual_seed(3)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3, generator=generator)
    model.save_pretrained(folder)
    (folder / "tokenizer.json").write_text(bert_like("<mask>" if kind == "Roberta" else "[MASK]").to_str())
    return model
