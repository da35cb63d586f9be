"""A vision transformer: patches by a convolution, a class token and positions that are arrays of its own."""

import jax
import jax.numpy as jnp
from flax import nnx
from transformers import ViTConfig, ViTForImageClassification
from twin import Twin, attend, channels_last, heads, image, layer_norm, linear, rngs

import jaxstate as js

WIDTH, INNER, HEADS, LAYERS, PATCH, SIZE, LABELS = 8, 12, 2, 2, 2, 6, 5


class Patches(nnx.Module):
    def __init__(self):
        self.projection = nnx.Conv(3, WIDTH, (PATCH, PATCH), PATCH, padding="VALID", rngs=rngs())

    def __call__(self, x):
        x = self.projection(channels_last(x))
        return x.reshape(x.shape[0], -1, WIDTH)


class Embeddings(nnx.Module):
    def __init__(self):
        self.cls_token = nnx.Param(jnp.zeros((1, 1, WIDTH)))
        self.position_embeddings = nnx.Param(jnp.zeros((1, (SIZE // PATCH) ** 2 + 1, WIDTH)))
        self.patch_embeddings = Patches()

    def __call__(self, x):
        token = jnp.broadcast_to(self.cls_token[...], (x.shape[0], 1, WIDTH))
        return jnp.concatenate([token, self.patch_embeddings(x)], 1) + self.position_embeddings[...]


class Attention(nnx.Module):
    def __init__(self):
        self.q_proj, self.k_proj, self.v_proj, self.o_proj = (linear(WIDTH, WIDTH) for _ in range(4))

    def __call__(self, x):
        return self.o_proj(
            attend(*(heads(part(x), HEADS) for part in (self.q_proj, self.k_proj, self.v_proj)))
        )


class MLP(nnx.Module):
    def __init__(self):
        self.fc1, self.fc2 = linear(WIDTH, INNER), linear(INNER, WIDTH)

    def __call__(self, x):
        return self.fc2(jax.nn.gelu(self.fc1(x), approximate=False))


class Layer(nnx.Module):
    def __init__(self):
        self.attention, self.mlp = Attention(), MLP()
        self.layernorm_before, self.layernorm_after = layer_norm(WIDTH, 1e-12), layer_norm(WIDTH, 1e-12)

    def __call__(self, x):
        x = x + self.attention(self.layernorm_before(x))
        return x + self.mlp(self.layernorm_after(x))


class Body(nnx.Module):
    def __init__(self):
        self.embeddings = Embeddings()
        self.layers = nnx.List([Layer() for _ in range(LAYERS)])
        self.layernorm = layer_norm(WIDTH, 1e-12)

    def __call__(self, x):
        x = self.embeddings(x)
        for layer in self.layers:
            x = layer(x)
        return self.layernorm(x)


class ViT(nnx.Module):
    def __init__(self):
        self.vit, self.classifier = Body(), linear(WIDTH, LABELS)

    def __call__(self, x):
        return self.classifier(self.vit(x)[:, 0])


CONFIG = ViTConfig(
    hidden_size=WIDTH,
    num_hidden_layers=LAYERS,
    num_attention_heads=HEADS,
    intermediate_size=INNER,
    image_size=SIZE,
    patch_size=PATCH,
    num_labels=LABELS,
)
OWN = [f"vit.embeddings.{name}" for name in ("cls_token", "position_embeddings")]
TWIN = Twin(
    lambda: ViTForImageClassification(CONFIG),
    ViT,
    {"pixel_values": image(2, 3, SIZE, SIZE)},
    options={"rules": [js.Rule(name, name, "a n d -> a n d") for name in OWN]},
)
