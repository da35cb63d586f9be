"""One jitted step of each parity optimizer against optax's nearest: ratios of time and of memory, in one run.

    python benchmarks/optimizer_step.py [--millions 20] [--rounds 15] [--json out.json]

The parameters are those of a small transformer. A step is update and apply, compiled with its state and
parameters donated, as in training; the two are timed in turns, so that whatever else the machine does meets
both. Memory is what the compiler reports: arguments that are not reused, outputs and temporaries.
"""

import argparse
import json
import statistics
import time

import jax
import jax.numpy as jnp
import optax

import jaxstate as js


def averaged_sgd(lr, mu=1.0):
    """SGD, and beside it the mean of its iterates, of optax's parts."""
    inner = optax.sgd(lr)

    def update(updates, state, params):
        updates, sgd = inner.update(updates, state[0], params)
        new = optax.apply_updates(params, updates)
        return updates, (sgd, optax.incremental_update(new, state[1], state[2]), state[2])

    return optax.GradientTransformation(
        lambda params: (inner.init(params), jax.tree.map(jnp.zeros_like, params), jnp.float32(mu)), update
    )


# What a user would take instead. Where optax has no such algorithm, its nearest in cost is named.
PAIRS = {
    "sgd": (lambda: js.optim.sgd(lr=0.01, momentum=0.9), lambda: optax.sgd(0.01, 0.9)),
    "adam": (lambda: js.optim.adam(), lambda: optax.adam(1e-3)),
    "adam, amsgrad": (lambda: js.optim.adam(amsgrad=True), lambda: optax.amsgrad(1e-3)),
    "adamw": (lambda: js.optim.adamw(), lambda: optax.adamw(1e-3, weight_decay=0.01)),
    "adadelta": (lambda: js.optim.adadelta(), lambda: optax.adadelta(1.0, rho=0.9)),
    "adagrad": (lambda: js.optim.adagrad(), lambda: optax.adagrad(0.01)),
    "adamax": (lambda: js.optim.adamax(), lambda: optax.adamax(2e-3)),
    "asgd": (lambda: js.optim.asgd(), lambda: averaged_sgd(0.01)),
    "nadam": (lambda: js.optim.nadam(), lambda: optax.nadam(2e-3)),
    "radam": (lambda: js.optim.radam(), lambda: optax.radam(1e-3)),
    "rmsprop": (
        lambda: js.optim.rmsprop(momentum=0.9),
        lambda: optax.rmsprop(0.01, decay=0.99, momentum=0.9, eps_in_sqrt=False),
    ),
    "rprop": (lambda: js.optim.rprop(), lambda: optax.rprop(0.01)),
    "adafactor": (
        lambda: js.optim.adafactor(),
        lambda: optax.adafactor(0.01, min_dim_size_to_factor=1),
    ),
    "muon": (lambda: js.optim.muon(), lambda: optax.contrib.muon(1e-3)),
}
MATRICES_ONLY = ("muon",)


def parameters(millions, matrices_only):
    """A transformer's matrices and vectors, this many millions of elements together."""
    width = 512
    layers = max(1, round(millions * 1e6 / (12 * width * width)))
    shapes = {
        "qkv": (width, 3 * width),
        "out": (width, width),
        "up": (width, 4 * width),
        "down": (4 * width, width),
    }
    if not matrices_only:
        shapes |= {"bias": (4 * width,), "norm": (width,)}
    keys = iter(jax.random.split(jax.random.key(0), layers * len(shapes)))
    return [
        {name: jax.random.normal(next(keys), shape) for name, shape in shapes.items()} for _ in range(layers)
    ]


def compiled(tx, params):
    """The step, compiled, and its arguments."""

    def step(params, state, grads):
        updates, state = tx.update(grads, state, params)
        return optax.apply_updates(params, updates), state

    state = tx.init(params)
    grads = jax.tree.map(lambda p: 0.01 * jnp.sin(p), params)
    program = jax.jit(step, donate_argnums=(0, 1)).lower(params, state, grads).compile()
    return program, (jax.tree.map(jnp.array, params), state, grads)


def memory(program):
    """Bytes beyond the arguments: what a step needs on top of what training holds anyway."""
    analysis = program.memory_analysis()
    return analysis.temp_size_in_bytes + analysis.output_size_in_bytes - analysis.alias_size_in_bytes


def seconds(program, arguments):
    params, state, grads = arguments
    start = time.perf_counter()
    params, state = program(params, state, grads)
    jax.block_until_ready((params, state))
    return time.perf_counter() - start, (params, state, grads)


def compare(name, millions, rounds):
    """Medians of both sides, timed in turns after a warm-up."""
    params = parameters(millions, name in MATRICES_ONLY)
    programs, arguments = zip(*(compiled(make(), params) for make in PAIRS[name]), strict=True)
    arguments, times = list(arguments), ([], [])
    for n in range(rounds + 2):
        for side in (0, 1):
            elapsed, arguments[side] = seconds(programs[side], arguments[side])
            times[side].extend([elapsed] if n >= 2 else [])
    ours, theirs = (statistics.median(row) for row in times)
    spare = [memory(program) for program in programs]
    return {"name": name, "ms": ours * 1e3, "optax ms": theirs * 1e3, "time": ours / theirs, "spare": spare}


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--millions", type=float, default=20, help="parameters, in millions")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--json")
    options = parser.parse_args()
    print(f"{jax.devices()[0].device_kind}, {options.millions:g} million parameters, {options.rounds} rounds")
    print(f"{'optimizer':14} {'ms':>8} {'optax':>8} {'time':>6}   spare MiB, ours and optax's")
    rows = []
    for name in (n for n in PAIRS if hasattr(js.optim, n.partition(",")[0])):
        row = compare(name, options.millions, options.rounds)
        mine, theirs = (size / 2**20 for size in row["spare"])
        print(
            f"{name:14} {row['ms']:8.2f} {row['optax ms']:8.2f} {row['time']:6.2f}   {mine:.1f} {theirs:.1f}",
            flush=True,
        )
        rows.append(row)
    if options.json:
        with open(options.json, "w") as file:
            json.dump(rows, file, indent=1)


if __name__ == "__main__":
    main()
