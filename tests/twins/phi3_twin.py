"""Phi-3: Llama's layers, whose projections torch keeps in one; and a vocabulary that JAX has rounded up."""

from flax import nnx
from llama_twin import GROUPS, HEADS, INNER, LAYERS, VOCABULARY, WIDTH, Llama
from transformers import Phi3Config, Phi3ForCausalLM
from twin import Twin, linear, rngs, symbols

import jaxstate as js

PADDED = 16


class Phi3(Llama):
    def __init__(self):
        super().__init__()
        self.model.embed_tokens = nnx.Embed(PADDED, WIDTH, rngs=rngs())
        self.lm_head = linear(WIDTH, PADDED, bias=False)


def fused(whole, *parts):
    """Linear layers of every layer that torch has in one."""
    key, prefix = f"model.layers.{{l}}.{whole}.weight", f"model.layers.{{l}}.{whole.rpartition('.')[0]}."
    return js.Fused([js.Rule(key, f"{prefix}{p}.kernel", "i o -> o i", l=range(LAYERS)) for p in parts], "o")


EMBEDDING = js.Rule("model.embed_tokens.weight", "model.embed_tokens.embedding", "v d -> v d")
HEAD = js.Rule("lm_head.weight", "lm_head.kernel", "d v -> v d")
RULES = [
    fused("self_attn.qkv_proj", "q_proj", "k_proj", "v_proj"),
    fused("mlp.gate_up_proj", "gate_proj", "up_proj"),
    js.Padded(EMBEDDING, "v", VOCABULARY),
    js.Padded(HEAD, "v", VOCABULARY),
]

CONFIG = Phi3Config(
    vocab_size=VOCABULARY,
    hidden_size=WIDTH,
    intermediate_size=INNER,
    num_hidden_layers=LAYERS,
    num_attention_heads=HEADS,
    num_key_value_heads=GROUPS,
    max_position_embeddings=16,
    original_max_position_embeddings=16,
    rms_norm_eps=1e-6,
    pad_token_id=None,
    bos_token_id=1,
    eos_token_id=2,
)
TWIN = Twin(
    lambda: Phi3ForCausalLM(CONFIG),
    Phi3,
    {"input_ids": symbols(VOCABULARY, 2, 6)},
    call=lambda model, x: model(x)[..., :VOCABULARY],
    options={"rules": RULES},
)
