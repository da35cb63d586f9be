"""Whisper: convolutions over time, keys without a bias, attention to the sound, a tied head."""

import jax
import jax.numpy as jnp
from flax import nnx
from transformers import WhisperConfig, WhisperForConditionalGeneration
from twin import Twin, attend, causal, channels_last, heads, image, layer_norm, linear, rngs, symbols

VOCABULARY, MELS, WIDTH, INNER, HEADS, LAYERS, SOUND, TEXT = 11, 4, 8, 12, 2, 2, 6, 7


class Attention(nnx.Module):
    def __init__(self):
        self.k_proj, self.v_proj = linear(WIDTH, WIDTH, bias=False), linear(WIDTH, WIDTH)
        self.q_proj, self.out_proj = linear(WIDTH, WIDTH), linear(WIDTH, WIDTH)

    def __call__(self, x, memory, bias=0.0):
        parts = self.q_proj(x), self.k_proj(memory), self.v_proj(memory)
        return self.out_proj(attend(*(heads(part, HEADS) for part in parts), bias))


def norm():
    return layer_norm(WIDTH, 1e-5)


class EncoderLayer(nnx.Module):
    def __init__(self):
        self.self_attn, self.self_attn_layer_norm = Attention(), norm()
        self.fc1, self.fc2, self.final_layer_norm = linear(WIDTH, INNER), linear(INNER, WIDTH), norm()

    def __call__(self, x):
        normed = self.self_attn_layer_norm(x)
        return self.feed(x + self.self_attn(normed, normed))

    def feed(self, x):
        return x + self.fc2(jax.nn.gelu(self.fc1(self.final_layer_norm(x)), approximate=False))


class DecoderLayer(EncoderLayer):
    def __init__(self):
        self.self_attn, self.self_attn_layer_norm = Attention(), norm()
        self.encoder_attn, self.encoder_attn_layer_norm = Attention(), norm()
        self.fc1, self.fc2, self.final_layer_norm = linear(WIDTH, INNER), linear(INNER, WIDTH), norm()

    def __call__(self, x, memory):
        normed = self.self_attn_layer_norm(x)
        x = x + self.self_attn(normed, normed, causal(x.shape[1]))
        return self.feed(x + self.encoder_attn(self.encoder_attn_layer_norm(x), memory))


class Encoder(nnx.Module):
    def __init__(self):
        self.conv1 = nnx.Conv(MELS, WIDTH, (3,), padding=[(1, 1)], rngs=rngs())
        self.conv2 = nnx.Conv(WIDTH, WIDTH, (3,), 2, padding=[(1, 1)], rngs=rngs())
        self.embed_positions = nnx.Embed(SOUND, WIDTH, rngs=rngs())
        self.layers = nnx.List([EncoderLayer() for _ in range(LAYERS)])
        self.layer_norm = norm()

    def __call__(self, sound):
        x = jax.nn.gelu(self.conv1(channels_last(sound)), approximate=False)
        x = jax.nn.gelu(self.conv2(x), approximate=False) + self.embed_positions.embedding[...]
        for layer in self.layers:
            x = layer(x)
        return self.layer_norm(x)


class Decoder(nnx.Module):
    def __init__(self):
        self.embed_tokens = nnx.Embed(VOCABULARY, WIDTH, rngs=rngs())
        self.embed_positions = nnx.Embed(TEXT, WIDTH, rngs=rngs())
        self.layers = nnx.List([DecoderLayer() for _ in range(LAYERS)])
        self.layer_norm = norm()

    def __call__(self, ids, memory):
        x = self.embed_tokens(ids) + self.embed_positions(jnp.arange(ids.shape[1]))
        for layer in self.layers:
            x = layer(x, memory)
        return self.layer_norm(x)


class Model(nnx.Module):
    def __init__(self):
        self.encoder, self.decoder = Encoder(), Decoder()


class Whisper(nnx.Module):
    def __init__(self):
        self.model = Model()
        self.proj_out = self.model.decoder.embed_tokens

    def __call__(self, sound, ids):
        return self.proj_out.attend(self.model.decoder(ids, self.model.encoder(sound)))


CONFIG = WhisperConfig(
    vocab_size=VOCABULARY,
    num_mel_bins=MELS,
    d_model=WIDTH,
    encoder_layers=LAYERS,
    decoder_layers=LAYERS,
    encoder_attention_heads=HEADS,
    decoder_attention_heads=HEADS,
    encoder_ffn_dim=INNER,
    decoder_ffn_dim=INNER,
    max_source_positions=SOUND,
    max_target_positions=TEXT,
    pad_token_id=0,
    bos_token_id=1,
    eos_token_id=2,
    decoder_start_token_id=1,
    suppress_tokens=None,
    begin_suppress_tokens=None,
)
INPUTS = {"input_features": image(2, MELS, 2 * SOUND), "decoder_input_ids": symbols(VOCABULARY, 2, 5)}
TWIN = Twin(
    lambda: WhisperForConditionalGeneration(CONFIG), Whisper, INPUTS, lambda m, sound, ids: m(sound, ids)
)
