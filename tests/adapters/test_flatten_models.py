"""Flattens by model: what is permuted, what is refused, and the architectures that bind without a word."""

from functools import partial

import jax
import jax.numpy as jnp
import pytest
from flattening import Net, chw, conv, find, flat, leaves_of, linear, rngs, shaped
from flax import nnx

from jaxstate.adapters._flatten import find_flattens, find_images
from jaxstate.errors import BindingError

HWC = "(h w c) -> (c h w)"
IMAGE = (2, 4, 5, 2)


def trunk(call, **layers):
    return lambda: Net(call, conv=conv(2, 3), **{name: make() for name, make in layers.items()})


def fc(n_in=60, n_out=5):
    return partial(linear, n_in, n_out)


def test_a_residual_and_branches_joined_by_channels():
    def call(net, x):
        y = net.conv(x)
        y = y + net.again(nnx.relu(y))
        return net.fc(flat(jnp.concatenate([y, net.other(x), nnx.avg_pool(x, (3, 3), padding="SAME")], -1)))

    layers = dict(again=partial(conv, 3, 3), other=partial(conv, 2, 4, (1, 1)), fc=fc(4 * 5 * 9))
    assert find(trunk(call, **layers), IMAGE) == {"fc.kernel": {0: HWC}}


def test_a_shared_trunk_with_two_heads_and_a_third_that_keeps_the_image():
    def call(net, x):
        y = net.conv(x)
        return net.a(flat(y)), net.b(chw(y)), net.c(flat(y)), net.mask(y)

    layers = dict(a=fc(), b=fc(), c=fc(), mask=partial(conv, 3, 1, (1, 1)))
    assert find(trunk(call, **layers), IMAGE) == {"a.kernel": {0: HWC}, "c.kernel": {0: HWC}}


def test_grouped_convolution_and_group_norm_split_channels_and_join_them_again():
    def call(net, x):
        return net.fc(flat(net.norm(net.again(net.conv(x)))))

    layers = dict(
        again=partial(conv, 3, 6, feature_group_count=3),
        norm=lambda: nnx.GroupNorm(6, num_groups=3, rngs=rngs()),
        fc=fc(120),
    )
    assert find(trunk(call, **layers), IMAGE) == {"fc.kernel": {0: HWC}}


def test_an_autoencoder_is_permuted_on_both_sides_of_its_code():
    def call(net, x):
        mean, _ = jnp.split(net.down(flat(nnx.relu(net.conv(x)))), 2, -1)
        return net.image(nnx.relu(net.up(mean)).reshape(2, 4, 5, 3))

    found = find(trunk(call, down=fc(60, 8), up=fc(4, 60), image=partial(conv, 3, 2)), IMAGE)
    assert found == {"down.kernel": {0: HWC}, "up.kernel": {1: HWC}, "up.bias": {0: HWC}}


def test_frequencies_merged_with_channels_at_every_time_step():
    def call(net, x):
        steps = net.conv(x).reshape(2, 4, 15)
        return net.fc(steps), net.rnn(steps), net.next(steps)

    layers = dict(
        fc=fc(15), next=partial(conv, 15, 7, (3,)), rnn=lambda: nnx.RNN(nnx.GRUCell(15, 6, rngs=rngs()))
    )
    found = find(trunk(call, **layers), IMAGE)
    assert found.pop("next.kernel") == {1: "(w c) -> (c w)"}
    assert found == dict.fromkeys(["fc.kernel", "rnn.cell.dense_i.kernel"], {0: "(w c) -> (c w)"})


def test_leaves_are_followed_through_their_own_reshapes_casts_and_products():
    def call(net, x):
        y = net.conv(x)
        left = (net.left.kernel[...].astype("float16").T @ flat(y).T).T + net.left.bias[...]
        spread = jnp.einsum("nhwc,hwco->no", y, net.spread.kernel[...].reshape(4, 5, 3, 5))
        low_rank = flat(y) @ (net.a.kernel[...] @ net.b.kernel[...])
        return left, spread, low_rank

    found = find(trunk(call, left=fc(), spread=fc(), a=fc(60, 2), b=fc(2, 60)), IMAGE)
    assert found == dict.fromkeys(["left.kernel", "spread.kernel", "a.kernel"], {0: HWC})


def test_scanned_blocks_before_and_after_the_flatten_count_their_stacked_dimension():
    def stack(make):
        return nnx.vmap(lambda key: make(nnx.Rngs(key)))(jax.random.split(jax.random.key(0), 4))

    def run(blocks, x):
        return nnx.scan(lambda x, block: x + nnx.relu(block(x)), in_axes=(nnx.Carry, 0), out_axes=nnx.Carry)(
            x, blocks
        )

    def call(net, x):
        return net.fc(run(net.linears, flat(run(net.convs, net.conv(x)))))

    layers = dict(
        convs=lambda: stack(lambda rngs: nnx.Conv(3, 3, (3, 3), rngs=rngs)),
        linears=lambda: stack(lambda rngs: nnx.Linear(60, 60, rngs=rngs)),
        fc=fc(),
    )
    found = find(trunk(call, **layers), IMAGE)
    assert found == {"fc.kernel": {0: HWC}, "linears.kernel": {1: HWC, 2: HWC}, "linears.bias": {1: HWC}}


def test_a_pixel_shuffle_in_torchs_order_is_no_flatten_and_in_another_is_refused():
    def shuffled(shape, order):
        def call(net, x):
            y = nnx.relu(net.many(net.conv(x))).reshape(2, 4, 5, *shape).transpose(order)
            return net.image(y.reshape(2, 8, 10, 3))

        return trunk(call, many=partial(conv, 3, 12), image=partial(conv, 3, 2))

    assert find(shuffled((3, 2, 2), (0, 1, 4, 2, 5, 3)), IMAGE) == {}
    with pytest.raises(BindingError, match=r'"many.bias".*"many.kernel".*parts of image axes'):
        find(shuffled((2, 2, 3), (0, 1, 3, 2, 4, 5)), IMAGE)


@pytest.mark.parametrize("channels, image", [(3, (2, 4, 5, 2)), (4, (2, 4, 4, 2)), (8, (2, 2, 4, 2))])
def test_a_leaf_shared_by_both_orders_is_refused(channels, image):
    def call(net, x):
        y = net.conv(x)
        return net.fc(flat(y)) + net.fc(chw(y))

    size = channels * image[1] * image[2]
    with pytest.raises(BindingError, match='"fc.kernel"'):
        find(lambda: Net(call, conv=conv(2, channels), fc=linear(size, 5)), image)


def test_a_leaf_shared_by_two_flattens_alike_is_answered_once():
    def call(net, x, y):
        return net.fc(flat(net.conv(x))) + net.fc(flat(net.conv(y)))

    assert find(trunk(call, fc=fc()), IMAGE, IMAGE) == {"fc.kernel": {0: HWC}}
    with pytest.raises(BindingError, match='"fc.kernel"'):
        find(trunk(call, fc=fc()), IMAGE, (2, 5, 4, 2))


def test_what_is_joined_with_a_flattened_image_is_not_blamed():
    def call(net, x, action):
        return net.fc(jnp.concatenate([flat(net.conv(x)), net.action(action)], 1))

    with pytest.raises(BindingError, match=r'^cannot tell.*"fc.kernel".*`concatenate`') as refusal:
        find(trunk(call, action=fc(4, 8), fc=fc(68)), IMAGE, (2, 4))
    assert "action" not in str(refusal.value)


def test_models_mapped_side_by_side_are_answered_each():
    def call(net, x):
        return net.fc(flat(net.again(net.conv(x))))

    def make():
        def member(key):
            rngs = nnx.Rngs(key)
            again = nnx.Conv(3, 3, (3, 3), rngs=rngs)
            first = nnx.Conv(2, 3, (3, 3), rngs=rngs)
            return Net(call, conv=first, again=again, fc=nnx.Linear(60, 5, rngs=rngs))

        members = nnx.vmap(member)(jax.random.split(jax.random.key(0), 4))
        run = nnx.vmap(lambda member, x: member(x), in_axes=(0, None))
        return Net(lambda net, x: run(net.members, x), members=members)

    assert find(make, IMAGE) == {"members.fc.kernel": {1: HWC}}


def test_an_empty_batch_is_no_crash():
    net = trunk(lambda net, x: net.fc(net.conv(x).mean((1, 2))), fc=fc(3))
    assert find(net, (0, 4, 5, 2)) == {}


# Models that flatten nothing bind without a word.


def vit(pool):
    def call(net, x):
        x = net.patch(x).reshape(2, -1, 16)
        x = jnp.concatenate([jnp.broadcast_to(net.first[...], (2, 1, 16)), x], 1) + net.pos[...]
        for norm, attend, wide, narrow in net.blocks:
            x = x + attend(norm(x))
            x = x + narrow(nnx.gelu(wide(x)))
        return net.head(pool(x))

    def block():
        attend = nnx.MultiHeadAttention(4, 16, decode=False, rngs=rngs())
        return nnx.List([nnx.LayerNorm(16, rngs=rngs()), attend, linear(16, 64), linear(64, 16)])

    def make():
        tokens = dict(first=nnx.Param(jnp.zeros((1, 1, 16))), pos=nnx.Param(jnp.zeros((1, 7, 16))))
        patch = conv(3, 16, (4, 4), strides=(4, 4))
        return Net(call, patch=patch, **tokens, blocks=nnx.List([block(), block()]), head=linear(16, 5))

    return make


@pytest.mark.parametrize("pool", [lambda x: x[:, 0], lambda x: x.mean(1)])
def test_a_vit_has_no_entry(pool):
    assert find(vit(pool), (2, 8, 12, 3)) == {}


def convnext(call_head, size):
    def call(net, x):
        x = net.stem(x)
        x = x + net.gamma[...] * net.narrow(nnx.gelu(net.wide(net.norm(net.depth(x)))))
        return net.head(call_head(net, x))

    def make():
        depth = conv(16, 16, (7, 7), feature_group_count=16)
        block = dict(
            depth=depth, norm=nnx.LayerNorm(16, rngs=rngs()), wide=linear(16, 64), narrow=linear(64, 16)
        )
        down = conv(16, 8, (2, 2), strides=(2, 2))
        gamma = nnx.Param(jnp.ones(16))
        stem = conv(3, 16, (4, 4), strides=(4, 4))
        return Net(call, stem=stem, **block, gamma=gamma, down=down, head=linear(size, 5))

    return make


def test_a_convnext_has_no_entry_unless_a_convolution_is_flattened():
    assert find(convnext(lambda net, x: x.mean((1, 2)), 16), (2, 8, 12, 3)) == {}
    found = find(convnext(lambda net, x: flat(net.down(x)), 16 * 2), (2, 16, 16, 3))
    assert found == {"head.kernel": {0: HWC}}
    with pytest.raises(BindingError, match="linear layer made the channels"):
        find(convnext(lambda net, x: flat(x), 16 * 6), (2, 8, 12, 3))


def test_attention_and_mixing_over_pixels_have_no_entry():
    def call(net, x):
        y = net.conv(x).reshape(2, 20, 3)
        scores = jax.nn.softmax(jnp.einsum("ntc,nsc->nts", net.query(y), net.key(y)))
        y = y + jnp.einsum("nts,nsc->ntc", scores, net.value(y))
        y = y + net.tokens(y.swapaxes(1, 2)).swapaxes(1, 2)
        return net.fc(y.mean(1)), net.image(y.reshape(2, 4, 5, 3))

    layers = dict(query=fc(3, 3), key=fc(3, 3), value=fc(3, 3), tokens=fc(20, 20), fc=fc(3))
    assert find(trunk(call, **layers, image=partial(conv, 3, 2)), IMAGE) == {}


def test_norms_of_images_and_models_without_convolutions_have_no_entry():
    def call(net, x):
        return net.fc(net.batch(net.conv(x)).mean((1, 2)))

    layers = dict(batch=lambda: nnx.BatchNorm(3, use_running_average=True, rngs=rngs()), fc=fc(3))
    assert find(trunk(call, **layers), IMAGE) == {}
    assert find(lambda: Net(lambda net, x: net.fc(flat(x)), fc=linear(40, 5)), IMAGE) == {}


def test_a_kernel_over_all_image_axes_is_named_axis_by_axis():
    layers = dict(fc=lambda: nnx.LinearGeneral((4, 5, 3), 6, axis=(-3, -2, -1), rngs=rngs()))
    function, leaves = leaves_of(trunk(lambda net, x: net.fc(net.conv(x)), **layers))
    assert find_images(function, leaves, *shaped(IMAGE)) == {"fc.kernel": ("h", "w", "c", "")}
    assert find_flattens(function, leaves, *shaped(IMAGE)) == {}
