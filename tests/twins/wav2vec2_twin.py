"""wav2vec2: convolutions over sound, and positions from one that is weight-normalised along its taps."""

from functools import partial

import jax
from flax import nnx
from transformers import Wav2Vec2Config, Wav2Vec2Model
from twin import Twin, attend, heads, image, layer_norm, linear, rngs

WIDTH, INNER, HEADS, TAPS, GROUPS, CHANNELS = 16, 24, 2, 6, 4, (8, 12)
KERNELS, STRIDES = (5, 3), (3, 2)

gelu = partial(jax.nn.gelu, approximate=False)


def conv(i, o, taps, stride):
    return nnx.Conv(i, o, (taps,), stride, padding="VALID", use_bias=False, rngs=rngs())


class FirstLayer(nnx.Module):
    def __init__(self):
        self.conv = conv(1, CHANNELS[0], KERNELS[0], STRIDES[0])
        self.layer_norm = nnx.GroupNorm(CHANNELS[0], num_groups=CHANNELS[0], epsilon=1e-5, rngs=rngs())

    def __call__(self, x):
        return gelu(self.layer_norm(self.conv(x)))


class ConvLayer(nnx.Module):
    def __init__(self):
        self.conv = conv(*CHANNELS, KERNELS[1], STRIDES[1])

    def __call__(self, x):
        return gelu(self.conv(x))


class FeatureExtractor(nnx.Module):
    def __init__(self):
        self.conv_layers = nnx.List([FirstLayer(), ConvLayer()])

    def __call__(self, x):
        for layer in self.conv_layers:
            x = layer(x)
        return x


class FeatureProjection(nnx.Module):
    def __init__(self):
        self.layer_norm, self.projection = layer_norm(CHANNELS[1], 1e-5), linear(CHANNELS[1], WIDTH)

    def __call__(self, x):
        return self.projection(self.layer_norm(x))


class PositionalConv(nnx.Module):
    def __init__(self):
        sides = ((TAPS // 2, TAPS // 2),)
        inner = nnx.Conv(WIDTH, WIDTH, (TAPS,), padding=sides, feature_group_count=GROUPS, rngs=rngs())
        self.conv = nnx.WeightNorm(inner, feature_axes=0, rngs=rngs())

    def __call__(self, x):
        return gelu(self.conv(x)[:, :-1])


class Attention(nnx.Module):
    def __init__(self):
        self.k_proj, self.v_proj, self.q_proj, self.out_proj = (linear(WIDTH, WIDTH) for _ in range(4))

    def __call__(self, x):
        query, key, value = (heads(p(x), HEADS) for p in (self.q_proj, self.k_proj, self.v_proj))
        return self.out_proj(attend(query, key, value))


class FeedForward(nnx.Module):
    def __init__(self):
        self.intermediate_dense, self.output_dense = linear(WIDTH, INNER), linear(INNER, WIDTH)

    def __call__(self, x):
        return self.output_dense(gelu(self.intermediate_dense(x)))


class Layer(nnx.Module):
    def __init__(self):
        self.attention, self.layer_norm = Attention(), layer_norm(WIDTH, 1e-5)
        self.feed_forward, self.final_layer_norm = FeedForward(), layer_norm(WIDTH, 1e-5)

    def __call__(self, x):
        x = self.layer_norm(x + self.attention(x))
        return self.final_layer_norm(x + self.feed_forward(x))


class Encoder(nnx.Module):
    def __init__(self):
        self.pos_conv_embed, self.layer_norm = PositionalConv(), layer_norm(WIDTH, 1e-5)
        self.layers = nnx.List([Layer()])

    def __call__(self, x):
        x = self.layer_norm(x + self.pos_conv_embed(x))
        for layer in self.layers:
            x = layer(x)
        return x


class Wav2Vec2(nnx.Module):
    def __init__(self):
        self.feature_extractor, self.feature_projection = FeatureExtractor(), FeatureProjection()
        self.encoder = Encoder()

    def __call__(self, sound):
        return self.encoder(self.feature_projection(self.feature_extractor(sound[..., None])))


CONFIG = Wav2Vec2Config(
    hidden_size=WIDTH,
    intermediate_size=INNER,
    num_hidden_layers=1,
    num_attention_heads=HEADS,
    conv_dim=CHANNELS,
    conv_kernel=KERNELS,
    conv_stride=STRIDES,
    num_conv_pos_embeddings=TAPS,
    num_conv_pos_embedding_groups=GROUPS,
    mask_time_prob=0.0,
    mask_feature_prob=0.0,
)
TWIN = Twin(
    lambda: Wav2Vec2Model(CONFIG),
    Wav2Vec2,
    {"input_values": image(2, 100)},
    reference=lambda model, **inputs: model(**inputs).last_hidden_state,
)
