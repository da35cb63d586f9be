"""bind(original=...): settings that differ from torch's are told by the Binding, before anything runs."""

import equinox as eqx
import haiku as hk
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from flax import linen as nn
from flax import nnx

import jaxstate as js
from jaxstate.display import binding_table

KEY = jax.random.key(0)
IMAGES, MAPS = jax.ShapeDtypeStruct((2, 8, 6, 4), "float32"), jax.ShapeDtypeStruct((4, 8, 6), "float32")


class Theirs(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = torch.nn.Conv2d(4, 6, 3, padding=1, stride=2)
        self.bn = torch.nn.BatchNorm2d(6, momentum=0.2)
        self.norm = torch.nn.LayerNorm(6)
        self.act = torch.nn.GELU()
        self.fc = torch.nn.Linear(6, 6)


class Nnx(nnx.Module):
    def __init__(self, rngs, right=False):
        eps = 1e-5 if right else 1e-6
        self.conv = nnx.Conv(4, 6, (3, 3), strides=2, padding=1 if right else "SAME", rngs=rngs)
        self.bn = nnx.BatchNorm(6, momentum=0.8, epsilon=eps, use_running_average=True, rngs=rngs)
        self.norm = nnx.LayerNorm(6, epsilon=eps, rngs=rngs)
        self.fc = nnx.Linear(6, 6, rngs=rngs)
        self.right = right

    def __call__(self, x):
        return self.fc(nnx.gelu(self.norm(self.bn(self.conv(x))), approximate=not self.right))


class Linen(nn.Module):
    right: bool = False

    @nn.compact
    def __call__(self, x):
        eps = 1e-5 if self.right else 1e-6
        x = nn.Conv(6, (3, 3), strides=2, padding=1 if self.right else "SAME", name="conv")(x)
        x = nn.BatchNorm(momentum=0.8, epsilon=eps, use_running_average=True, name="bn")(x)
        x = nn.gelu(nn.LayerNorm(epsilon=eps, name="norm")(x), approximate=not self.right)
        return nn.Dense(6, name="fc")(x)


class Equinox(eqx.Module):
    conv: eqx.nn.Conv2d
    bn: eqx.nn.BatchNorm
    norm: eqx.nn.LayerNorm
    fc: eqx.nn.Linear
    right: bool = eqx.field(static=True)

    def __init__(self, key, right=False):
        eps, padding = (1e-5, 1) if right else (1e-6, "SAME")
        self.conv = eqx.nn.Conv2d(4, 6, 3, stride=2, padding=padding, key=key)
        self.bn = eqx.nn.BatchNorm(6, "batch", eps=eps, momentum=0.8, mode="batch", inference=True)
        self.norm = eqx.nn.LayerNorm(6, eps=eps)
        self.fc = eqx.nn.Linear(6, 6, key=key)
        self.right = right

    def __call__(self, x, state):
        x, state = self.bn(self.conv(x), state)
        x = jax.vmap(self.norm)(x.reshape(6, -1).T)
        return jax.vmap(self.fc)(jax.nn.gelu(x, approximate=not self.right)), state


def haiku(x, right=False):
    eps, padding = (1e-5, ((1, 1), (1, 1))) if right else (1e-6, "SAME")
    x = hk.Conv2D(6, 3, stride=2, padding=padding, name="conv")(x)
    x = hk.BatchNorm(True, True, 0.8, eps=eps, name="bn")(x, is_training=True)
    x = hk.LayerNorm(-1, True, True, eps=eps, name="norm")(x)
    return hk.Linear(6, name="fc")(jax.nn.gelu(x, approximate=not right))


MODELS = {
    "nnx": (lambda right: nnx.eval_shape(lambda: Nnx(nnx.Rngs(0), right)), IMAGES, "epsilon=1e-05"),
    "linen": (Linen, IMAGES, "epsilon=1e-05"),
    "equinox": (
        lambda right: eqx.filter_eval_shape(eqx.nn.make_with_state(Equinox), KEY, right),
        MAPS,
        "eps=1e-05",
    ),
    "haiku": (lambda right: hk.transform_with_state(lambda x: haiku(x, right)), IMAGES, "eps=1e-05"),
}


@pytest.mark.parametrize("library", MODELS)
def test_in_every_library(library):
    make, x, mend = MODELS[library]
    with torch.device("meta"):
        theirs = Theirs().eval()
    assert js.bind(make(True), x, original=theirs).warnings == ()
    wrong = js.bind(make(False), x, original=theirs)
    assert wrong == js.bind(make(False), x) and js.bind(make(False), x).warnings == ()
    conv, *norms, gelu = wrong.warnings
    assert conv.startswith("conv: padding SAME, which depends on the image's size against ((1, 1), (1, 1))")
    assert norms == [
        f"bn: eps 1e-06 against 1e-05; mend: BatchNorm(..., {mend})",
        f"norm: eps 1e-06 against 1e-05; mend: LayerNorm(..., {mend})",
    ]
    assert gelu.startswith(
        "act: gelu approximated by tanh against exact; mend: jax.nn.gelu(x, approximate=False)"
    )


def test_they_are_shown():
    model = nnx.Dict({"a<b": nnx.LayerNorm(4, rngs=nnx.Rngs(0))})
    theirs = torch.nn.ModuleDict({"a<b": torch.nn.LayerNorm(4)})
    binding = js.bind(model, original=theirs)
    line = "warning: a<b: eps 1e-06 against 1e-05; mend: LayerNorm(..., epsilon=1e-05)"
    assert str(binding).splitlines()[-1] == str(binding_table(binding)).splitlines()[-1] == line
    assert binding._repr_html_().endswith(f"<p>{line.replace('<', '&lt;')}</p>")
    assert binding_table(binding)._repr_html_().endswith(f"<p>{line.replace('<', '&lt;')}</p>")
    assert binding.only("*weight").warnings == binding.warnings
    assert js.Binding.from_json(binding.to_json()).warnings == ()


def test_layers_that_are_alike_share_a_sentence_and_a_stack_is_all_of_its_layers():
    class Block(nnx.Module):
        def __init__(self, rngs):
            self.norm = nnx.LayerNorm(4, rngs=rngs)
            self.fc = nnx.Linear(4, 4, rngs=rngs)

    class Stack(nnx.Module):
        def __init__(self):
            self.h = nnx.split_rngs(splits=5)(nnx.vmap(Block))(nnx.Rngs(0))

    layers = [
        torch.nn.ModuleDict({"norm": torch.nn.LayerNorm(4, eps=1e-3), "fc": torch.nn.Linear(4, 4)})
        for _ in range(5)
    ]
    theirs = torch.nn.ModuleDict({"h": torch.nn.ModuleList(layers)})
    (line,) = js.bind(Stack(), original=theirs).warnings
    assert line.startswith("h.0.norm, h.1.norm, h.2.norm and 2 more: eps 1e-06 against 0.001; mend: LayerN")


def test_a_files_names_are_those_of_the_original():
    model = nnx.Dict({"layers_0": nnx.Dict({"ln": nnx.LayerNorm(4, rngs=nnx.Rngs(0))})})
    theirs = torch.nn.Sequential(torch.nn.LayerNorm(4))
    renamed = js.bind(model, rename={"layers_{i}.ln": "{i}"}, original=theirs)
    assert [line.partition(":")[0] for line in renamed.warnings] == ["0"]
    with pytest.raises(js.BindingError, match=r"shares no name with the model(?s:.*)original=module.model"):
        js.bind(model, original=theirs)


def test_what_cannot_be_compared_is_named():
    class Own(nnx.Module):
        """A norm of the user's, whose eps is nowhere to be seen."""

        def __init__(self):
            self.weight, self.bias = nnx.Param(jnp.ones(4)), nnx.Param(jnp.ones(4))

    theirs = torch.nn.ModuleDict({"norm": torch.nn.LayerNorm(4), "fc": torch.nn.Linear(4, 3)})
    model = nnx.Dict({"norm": Own(), "fc": nnx.Linear(4, 3, rngs=nnx.Rngs(0))})
    assert js.bind(model, original=theirs).warnings == ("not compared: norm (eps)",)


def test_heads_and_dropout_of_attention():
    model = nnx.MultiHeadAttention(4, 8, dropout_rate=0.25, decode=False, rngs=nnx.Rngs(0))
    theirs = torch.nn.MultiheadAttention(8, 2, dropout=0.5)
    assert js.bind(model, original=theirs).warnings == (
        "the model: num_heads 4 against 2; mend: MultiHeadAttention(..., num_heads=2)",
        "the model: dropout 0.25 against 0.5; mend: MultiHeadAttention(..., dropout_rate=0.5)",
    )


CONFIG = {
    "layer_norm_eps": 1e-12,
    "num_attention_heads": 2,
    "attention_probs_dropout_prob": 0.1,
    "hidden_act": "gelu",
    "vocab_size": 11,
    "hidden_size": 8,
    "tie_word_embeddings": True,
    "rope_theta": 10000.0,
}


class Bert(nnx.Module):
    def __init__(self, eps, heads=2, rate=0.1, exact=True):
        rngs = nnx.Rngs(0)
        self.embed = nnx.Embed(11, 8, rngs=rngs)
        self.attn = nnx.MultiHeadAttention(
            heads, 8, dropout_rate=rate, decode=False, deterministic=True, rngs=rngs
        )
        self.norm1, self.norm2 = (nnx.LayerNorm(8, epsilon=e, rngs=rngs) for e in eps)
        self.head = nnx.Linear(8, 11, use_bias=False, rngs=rngs)
        self.exact = exact

    def __call__(self, tokens):
        x = self.attn(self.norm1(self.embed(tokens)))
        return self.head(nnx.gelu(self.norm2(x), approximate=not self.exact))


TIES = 'tie_word_embeddings is true, and "embed.weight" and "head.weight" are two leaves in JAX: train one'
TOKENS = jax.ShapeDtypeStruct((2, 5), "int32")


def of_config(model, config=CONFIG, **options):
    return js.bind(model, TOKENS, original=config, **options).warnings


def test_a_config_is_compared_with_all_layers_of_a_kind():
    assert of_config(Bert((1e-12, 1e-12))) == (TIES,)
    assert of_config(Bert((1e-6, 1e-6), 4, 0.0, False)) == (
        "norm1, norm2: eps 1e-06 against layer_norm_eps=1e-12; mend: LayerNorm(..., epsilon=1e-12)",
        "attn: num_heads 4 against num_attention_heads=2; mend: MultiHeadAttention(..., num_heads=2)",
        "attn: dropout 0 against attention_probs_dropout_prob=0.1; mend: "
        "MultiHeadAttention(..., dropout_rate=0.1)",
        "hidden_act: gelu approximated by tanh against exact; mend: jax.nn.gelu(x, approximate=False)",
        TIES,
    )


def test_a_config_claims_nothing_of_single_layers():
    found = of_config(Bert((1e-12, 1e-6)), {"layer_norm_eps": 1e-12})
    assert found == (
        "not compared: norm2 (set otherwise than layer_norm_eps, which a config does not say layer by layer)",
    )


def test_a_config_that_says_nothing_of_the_layers_says_so():
    (line,) = of_config(Bert((1e-12, 1e-12)), {"rms_norm_eps": 1e-5, "rope_theta": 1e4})
    assert line.startswith("not compared: anything that the config says")


def test_two_words_for_one_thing_are_one():
    (line,) = of_config(Bert((1e-12, 1e-12), 4), {"num_attention_heads": 2, "n_head": 2})
    assert "num_heads 4 against num_attention_heads=2" in line


def test_ties_on_one_side_only():
    class Tied(nnx.Module):
        def __init__(self):
            self.embed = nnx.Embed(11, 8, rngs=nnx.Rngs(0))
            self.head = nnx.Linear(8, 11, use_bias=False, rngs=nnx.Rngs(0))
            self.norm = nnx.LayerNorm(8, epsilon=1e-12, rngs=nnx.Rngs(0))

    rules = [js.Tied("head.weight", "embed.weight")]
    model = Tied()
    del model.head
    for tie, expected in ((False, 1), (True, 0)):
        found = js.bind(model, rules=rules, original={**CONFIG, "tie_word_embeddings": tie}).warnings
        assert [line for line in found if "tie_word" in line] == [
            'tie_word_embeddings is false, and "head.weight" is tied to "embed.weight" in JAX'
        ] * expected


def test_an_original_of_another_kind_is_refused():
    for other in (np.zeros(3), {"scale": np.zeros(4)}):
        with pytest.raises(TypeError, match="original= is a torch.nn.Module, a config of transformers"):
            js.bind(nnx.LayerNorm(4, rngs=nnx.Rngs(0)), original=other)
