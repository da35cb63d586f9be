"""A vision transformer in Equinox: one image at a time, channels first as in torch."""

import equinox as eqx
import jax
import jax.numpy as jnp
from transformers import ViTForImageClassification
from twin import Twin, attend, heads, image
from vit_twin import CONFIG, HEADS, INNER, LABELS, LAYERS, OWN, PATCH, SIZE, WIDTH

KEY = jax.random.key(0)


def linear(i, o):
    return eqx.nn.Linear(i, o, key=KEY)


def norm():
    return eqx.nn.LayerNorm(WIDTH, eps=1e-12)


class Patches(eqx.Module):
    projection: eqx.nn.Conv2d

    def __init__(self):
        self.projection = eqx.nn.Conv2d(3, WIDTH, PATCH, PATCH, key=KEY)

    def __call__(self, x):
        return self.projection(x).reshape(WIDTH, -1).T


class Embeddings(eqx.Module):
    cls_token: jax.Array
    position_embeddings: jax.Array
    patch_embeddings: Patches

    def __init__(self):
        self.cls_token = jnp.zeros((1, 1, WIDTH))
        self.position_embeddings = jnp.zeros((1, (SIZE // PATCH) ** 2 + 1, WIDTH))
        self.patch_embeddings = Patches()

    def __call__(self, x):
        return jnp.concatenate([self.cls_token[0], self.patch_embeddings(x)]) + self.position_embeddings[0]


class Attention(eqx.Module):
    q_proj: eqx.nn.Linear
    k_proj: eqx.nn.Linear
    v_proj: eqx.nn.Linear
    o_proj: eqx.nn.Linear

    def __init__(self):
        self.q_proj, self.k_proj, self.v_proj, self.o_proj = (linear(WIDTH, WIDTH) for _ in range(4))

    def __call__(self, x):
        parts = (jax.vmap(part)(x)[None] for part in (self.q_proj, self.k_proj, self.v_proj))
        return jax.vmap(self.o_proj)(attend(*(heads(part, HEADS) for part in parts))[0])


class MLP(eqx.Module):
    fc1: eqx.nn.Linear
    fc2: eqx.nn.Linear

    def __init__(self):
        self.fc1, self.fc2 = linear(WIDTH, INNER), linear(INNER, WIDTH)

    def __call__(self, x):
        return self.fc2(jax.nn.gelu(self.fc1(x), approximate=False))


class Layer(eqx.Module):
    attention: Attention
    mlp: MLP
    layernorm_before: eqx.nn.LayerNorm
    layernorm_after: eqx.nn.LayerNorm

    def __init__(self):
        self.attention, self.mlp = Attention(), MLP()
        self.layernorm_before, self.layernorm_after = norm(), norm()

    def __call__(self, x):
        x = x + self.attention(jax.vmap(self.layernorm_before)(x))
        return x + jax.vmap(self.mlp)(jax.vmap(self.layernorm_after)(x))


class Body(eqx.Module):
    embeddings: Embeddings
    layers: list[Layer]
    layernorm: eqx.nn.LayerNorm

    def __init__(self):
        self.embeddings, self.layers = Embeddings(), [Layer() for _ in range(LAYERS)]
        self.layernorm = norm()

    def __call__(self, x):
        x = self.embeddings(x)
        for layer in self.layers:
            x = layer(x)
        return self.layernorm(x[0])


class ViT(eqx.Module):
    vit: Body
    classifier: eqx.nn.Linear

    def __init__(self, key):
        self.vit, self.classifier = Body(), linear(WIDTH, LABELS)

    def __call__(self, x):
        return self.classifier(self.vit(x))


TWIN = Twin(
    lambda: ViTForImageClassification(CONFIG),
    ViT,
    {"pixel_values": image(2, 3, SIZE, SIZE)},
    options={"as_is": OWN},
)
