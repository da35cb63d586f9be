"""One jitted step of each parity optimizer against optax's nearest and against torch's own, in one run.

    python benchmarks/optimizer_step.py [--millions 20] [--rounds 15] [--only 'adam;sgd'] [--cpu] [--json F]

The parameters are those of a small transformer. A step is update and apply, compiled with its state and
parameters donated, as in training. All sides are timed in turns, so that whatever else the machine does meets
each of them; with --cpu, what counts is the time that the process had on all cores together, which other work
does not lengthen. torch's are its loops over lists of tensors and, where it has one, its fused kernel, on as
many threads as there are cores. Memory is what the compiler reports: outputs that are not written over
arguments, and temporaries.
"""

import argparse
import json
import os
import time

import jax
import jax.numpy as jnp
import numpy as np
import optax

import jaxstate as js

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # a thread of torch's that waits takes no time
try:
    import torch
except ImportError:
    torch = None


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

# torch's class, and what is not its default. Muon has one implementation there.
TORCH = {
    "sgd": ("SGD", {"lr": 0.01, "momentum": 0.9}),
    "adam": ("Adam", {}),
    "adam, amsgrad": ("Adam", {"amsgrad": True}),
    "adamw": ("AdamW", {}),
    "adadelta": ("Adadelta", {}),
    "adagrad": ("Adagrad", {}),
    "adamax": ("Adamax", {}),
    "asgd": ("ASGD", {}),
    "nadam": ("NAdam", {}),
    "radam": ("RAdam", {}),
    "rmsprop": ("RMSprop", {"momentum": 0.9}),
    "rprop": ("Rprop", {}),
    "adafactor": ("Adafactor", {}),
    "muon": ("Muon", {}),
}
FUSED = ("sgd", "adam", "adam, amsgrad", "adamw", "adagrad")


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


def compiled_step(clock, program, params, state, grads):
    """A function that makes one step more and returns its time in seconds."""

    def run():
        nonlocal params, state
        start = clock()
        params, state = program(params, state, grads)
        jax.block_until_ready((params, state))
        return clock() - start

    return run


def torch_step(clock, name, params, **implementation):
    """The same of torch."""
    kind, options = TORCH[name]
    tensors = [torch.nn.Parameter(torch.from_numpy(np.array(p))) for p in jax.tree.leaves(params)]
    for p in tensors:
        p.grad = 0.01 * p.detach().sin()
    optimizer = getattr(torch.optim, kind)(tensors, **options, **implementation)

    def run():
        start = clock()
        optimizer.step()
        return clock() - start

    return run


def compare(name, millions, rounds, clock=time.perf_counter):
    """The fastest round in milliseconds of all sides, timed in turns after a warm-up; the programs' memory.

    Whatever else the machine does only adds to a time.
    """
    params = parameters(millions, name in MATRICES_ONLY)
    made = [compiled(make(), params) for make in PAIRS[name]]
    sides = {
        side: compiled_step(clock, program, *arguments)
        for side, (program, arguments) in zip(("ours", "optax"), made, strict=True)
    }
    if torch is not None:
        sides["foreach"] = torch_step(clock, name, params, **({} if name == "muon" else {"foreach": True}))
    if torch is not None and name in FUSED:
        sides["fused"] = torch_step(clock, name, params, fused=True)
    times = {side: [] for side in sides}
    for n in range(rounds + 2):
        for side, run in sides.items():
            elapsed = run()
            times[side] += [elapsed] if n >= 2 else []
    ms = {side: 1e3 * min(row) for side, row in times.items()}
    return {"name": name, **ms, "spare": [memory(program) / 2**20 for program, _ in made]}


def shown(row):
    """A line of the table: milliseconds, ratios, MiB."""
    cells = [f"{row['name']:14} {row['ours']:8.2f}"]
    for side in ("optax", "foreach", "fused"):
        cells.append(f"{row[side]:8.2f} {row['ours'] / row[side]:5.2f}" if side in row else " " * 14)
    return "  ".join(cells) + "   {:6.1f} {:6.1f}".format(*row["spare"])


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--millions", type=float, default=20, help="parameters, in millions")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--only", type=lambda names: names.split(";"), default=list(PAIRS))
    parser.add_argument("--cpu", action="store_true", help="CPU time instead of elapsed time")
    parser.add_argument("--json")
    options = parser.parse_args()
    if torch is not None:
        torch.set_num_threads(os.cpu_count())
    print(f"{jax.devices()[0].device_kind}, {options.millions:g} million parameters, {options.rounds} rounds")
    print(f"{'optimizer':14} {'ms':>8}  {'optax':>14}  {'torch foreach':>14}  {'fused':>14}   spare MiB")
    rows, clock = [], time.process_time if options.cpu else time.perf_counter
    for name in options.only:
        rows.append(compare(name, options.millions, options.rounds, clock))
        print(shown(rows[-1]), flush=True)
    if options.json:
        with open(options.json, "w") as file:
            json.dump(rows, file, indent=1)


if __name__ == "__main__":
    main()
