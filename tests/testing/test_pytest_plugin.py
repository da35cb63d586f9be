"""The plugin: its fixtures, its option, and what a failed test shows."""

import pytest

pytest_plugins = ["pytester"]

HEAD = """
import jaxstate as js
import numpy as np
import pytest
import torch
from flax import nnx

def linear(scale=1.0):
    net, model = torch.nn.Linear(3, 5), nnx.Linear(3, 5, rngs=nnx.Rngs(0))
    sd = {key: tensor * scale for key, tensor in net.state_dict().items()}
    return net, js.load_state_dict(model, sd)
"""


@pytest.fixture
def run(pytester, pytestconfig):
    """Run a test file with the plugin, whether or not it is installed as one."""
    installed = pytestconfig.pluginmanager.has_plugin("jaxstate")

    def run(body, *arguments):
        import jaxstate.testing.plugin as plugin

        pytester.makepyfile(HEAD + body)
        plugins = [] if installed else [plugin]
        return pytester.runpytest_inprocess("-p", "no:cacheprovider", *arguments, plugins=plugins)

    return run


def test_fixtures(run):
    body = """
def test_right(assert_port, port_inputs, port_rtol):
    assert port_rtol == 1e-5
    x = port_inputs(2, 3)
    assert x.shape == (2, 3) and x.dtype == "float32"
    tokens = port_inputs(4, 6, below=7)
    assert tokens.dtype.kind == "i" and tokens.min() >= 0 and tokens.max() < 7
    assert_port(*linear(), x)
    assert_port(*linear(), torch.from_numpy(port_inputs(2, 3, dtype="float32")))

SEEN = {}

@pytest.mark.parametrize("number", [0, 1, 0.0])
def test_inputs_are_of_the_test(port_inputs, request, number):
    first, second = port_inputs(3), port_inputs(3)
    assert not np.array_equal(first, second)
    assert not any(np.array_equal(first, other) for other in SEEN.values())
    SEEN[request.node.nodeid] = first
"""
    run(body).assert_outcomes(passed=4)


def test_a_failure_shows_the_cause_and_the_layers(run):
    body = """
def test_wrong(assert_port, port_inputs):
    assert_port(*linear(1.01), port_inputs(2, 3))
"""
    result = run(body)
    result.assert_outcomes(failed=1)
    out = result.stdout
    out.fnmatch_lines(["E*ParityError: the output differs (rtol=1e-05)*"])
    out.fnmatch_lines(['*first layer that differs: "the model" (Linear)*', "*cause: *", "*mend: *"])
    out.fnmatch_lines(["*layers: torch beside JAX*", "torch*jax*relative*", "the model * (2, 5) *"])
    out.no_fnmatch_line("*_same_outputs.py*")  # the frames shown are the test's own


def test_the_tolerance_is_an_option(run):
    body = """
def test_loose(assert_port, port_inputs):
    assert_port(*linear(1.01), port_inputs(2, 3))
"""
    run(body, "--port-rtol=0.1").assert_outcomes(passed=1)


def test_other_failures_are_shown_as_they_are(run):
    result = run("def test_other():\n    assert 1 == 2\n")
    result.assert_outcomes(failed=1)
    result.stdout.no_fnmatch_line("*layers: torch beside JAX*")
