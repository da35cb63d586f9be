"""What the report says of a mistake: where it is, and what it is; also of mistakes at random."""

import functools

import numpy as np
import pytest
from mistakes import MISTAKES
from twins import make

import jaxstate as js
from jaxstate.testing._port import Port

made = functools.cache(make)

# The order in which torch calls the layers.
ORDER = {
    "mlp": ("fc1", "fc2", "fc3", "head"),
    "cnn": ("conv1", "bn", "conv2", "up", "fc"),
    "block": ("embed", "norm1", "attn", "norm2", "up", "down"),
}


def report_of(twin, model, binding=None):
    """The report, or "" if the port is believed to be right."""
    options = dict(binding=binding, input_layout=twin.twin.layout)
    try:
        js.testing.assert_same_outputs(twin.torch, model, *twin.twin.inputs, **options)
    except js.ParityError as error:
        return str(error)
    return ""


def place_in(report):
    lines = [line for line in report.splitlines() if "first layer" in line or "reads differs" in line]
    return lines[0].partition("in JAX")[0] if lines else ""


def cause_in(report):
    return next((line for line in report.splitlines() if line.strip().startswith("cause:")), "")


def verdict(mistake):
    """ "" if all is said; else what is missing."""
    twin = made(mistake.twin)
    report = report_of(twin, *mistake.make(twin))
    if not report:
        return "not found out"
    if mistake.place not in place_in(report):
        return f"place: {place_in(report)}"
    return "" if mistake.cause in cause_in(report) and "mend:" in report else cause_in(report)


@pytest.mark.parametrize("mistake", MISTAKES, ids=lambda m: f"{m.twin}: {m.name}")
def test_the_report_names_place_and_cause(mistake):
    assert verdict(mistake) == ""


def test_also_where_nothing_tells_what_a_model_holds(monkeypatch):
    """As where all layers are the user's own: outputs are all there is."""
    monkeypatch.setattr(Port, "own", property(lambda port: None))
    weights = [mistake for mistake in MISTAKES if mistake.is_weight]
    found = {f"{m.twin}: {m.name}": verdict(m) for m in weights}
    assert {name: words for name, words in found.items() if words} == {}


def spoiled(entries, rng):
    """One or two entries with other values: permuted, scaled, or exchanged with others of their shape."""
    keys = [key for key, a in entries.items() if a.dtype.kind == "f"]
    changed = {}
    for key in rng.choice(keys, size=rng.integers(1, 3), replace=False):
        array = entries[key]
        ways = [rng.permutation(array.ravel()).reshape(array.shape), array * 1.5, array + 0.1]
        ways += [a for other, a in entries.items() if other != key and a.shape == array.shape]
        way = ways[rng.integers(len(ways))]
        changed[key] = np.abs(way) if key.endswith("running_var") else way
    return changed


@pytest.mark.parametrize("name", ORDER)
def test_any_spoiled_weights_are_placed(name):
    """The oracle is torch's order: the first layer with an entry that is not torch's differs first."""
    twin, rng = made(name), np.random.default_rng(len(name))
    entries = {key: tensor.numpy() for key, tensor in twin.torch.state_dict().items()}
    for _ in range(12):
        changed = spoiled(entries, rng)
        layers = {key.partition(".")[0] for key in changed}
        first = min(layers, key=ORDER[name].index)
        report = report_of(twin, twin.loaded(state_dict={**entries, **changed}))
        assert f'first layer that differs: "{first}"' in report, (sorted(changed), report)
        assert "cause: JAX holds other weights" in report, report
        assert all(f'"{key}"' in report for key in changed)
