"""A training loop's checkpoints: what is kept, what is there after a failure, what may change meanwhile."""

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as v0
import pytest
from flax import nnx
from orbax.checkpoint import v1 as ocp
from rich.progress import Progress

import jaxstate as js
from jaxstate.errors import CheckpointError
from jaxstate.orbax import Best, Checkpointer
from jaxstate.orbax._progress import written

W = js.Binding((js.Rule("w", "w", "a -> a"),))


def model(step):
    return {"w": np.float32([step, 1, 2])}


def run(folder, steps, losses=None, **options):
    """Save at every step; answer the steps that are there in the end."""
    with Checkpointer(folder, **options) as checkpoints:
        for i, step in enumerate(steps):
            metrics = None if losses is None else {"loss": losses[i], "other": i}
            checkpoints.save(step, model(step), binding=W, metrics=metrics)
        checkpoints.wait()
        return checkpoints.steps


LOSSES = [4.0, 2.0, 1.0, 0.0, 1.5, 2.5, 3.5]


@pytest.mark.parametrize(
    ("options", "kept"),
    [
        ({}, [0, 1, 2, 3, 4, 5, 6]),
        ({"keep": 2}, [5, 6]),
        ({"best": Best("loss", 2), "keep": 1}, [2, 3, 6]),
        ({"best": Best("loss", 1, "max"), "keep": 1}, [0, 6]),
        ({"best": Best("loss", 1, "max")}, [0, 6]),
        ({"keep_every": 4}, [0, 4, 6]),
        ({"keep": 1, "keep_every": 4}, [0, 4, 6]),
        ({"every": 3}, [0, 3, 6]),
        ({"every": 2, "keep": 2, "best": Best("loss")}, [2, 4, 6]),
    ],
    ids=str,
)
def test_which_steps_are_kept(tmp_path, options, kept):
    assert run(tmp_path, range(7), LOSSES, **options) == kept
    assert sorted(int(path.name) for path in tmp_path.iterdir()) == kept


def test_a_training_goes_on_where_it_was(tmp_path):
    """Interrupted twice, and the same in the end as one that was not."""
    net, tx = nnx.Linear(3, 5, rngs=nnx.Rngs(0)), js.optim.adamw(lr=0.05)
    halves = js.optim.schedulers.StepLR(step_size=2, gamma=0.5)

    @jax.jit
    def step(params, opt, key):
        grads = jax.tree.map(lambda p: jax.random.normal(key, p.shape) + p, params)
        return tx.update(grads, opt, params)

    def train(stop, checkpoints=None):
        graphdef, params = nnx.split(net)
        scheduler, opt = halves.init(tx.init(params))
        start, key = 0, jax.random.key(7)
        if checkpoints is not None and checkpoints.latest is not None:
            found = checkpoints.restore(nnx.eval_shape(lambda: net), opt, rngs=key)
            params, opt, start = nnx.state(found.model), found.opt_state, found.step
            scheduler, key = found.scheduler, found.rngs
        for n in range(start, stop):
            key, now = jax.random.split(key)
            updates, opt = step(params, opt, now)
            params = jax.tree.map(jnp.add, params, updates)
            scheduler, opt = halves.step(scheduler, opt)
            if checkpoints is not None:
                live = nnx.merge(graphdef, params)
                assert checkpoints.save(n + 1, live, opt, scheduler=scheduler, rngs=key, metrics={"n": n})
        return params, js.optim.state_dict(opt, js.bind(net))

    expected, osd = train(6)
    for stop in (2, 3, 6):
        with Checkpointer(tmp_path, keep=1) as checkpoints:
            params, found = train(stop, checkpoints)
    assert all(jax.tree.leaves(jax.tree.map(lambda x, y: bool((x == y).all()), params, expected)))
    assert repr(found) == repr(osd)
    with Checkpointer(tmp_path) as checkpoints:
        assert checkpoints.metrics == {6: {"n": 5.0}}
        assert js.orbax.to_torch(tmp_path / "6")["scheduler"]["last_epoch"] == 6


def test_what_is_given_may_change_at_once(tmp_path):
    w, opt = np.arange(200_000, dtype="f"), {"m": jnp.arange(200_000.0)}
    with Checkpointer(tmp_path) as checkpoints:
        checkpoints.save(1, {"w": w}, opt, binding=W)
        w[...] = -1
        jax.jit(lambda x: x * 0, donate_argnums=0)(opt["m"])
    found = js.orbax.restore(tmp_path / "1")
    assert np.array_equal(found.model["w"], np.arange(200_000)) and found.opt_state["m"][-1] == 199_999


def test_orbax_opens_the_steps(tmp_path):
    run(tmp_path, [4], [0.5])
    with ocp.training.Checkpointer(tmp_path) as theirs:
        assert theirs.latest.step == 4 and theirs.latest.metrics == {"loss": 0.5, "other": 0.0}
        found = theirs.load_checkpointables(4, {"params": {"w": np.empty(3, "f")}})
    assert found["params"]["w"].tolist() == [4, 1, 2]
    with v0.CheckpointManager(tmp_path) as theirs:
        params = v0.args.StandardRestore({"w": np.empty(3, "f")})
        found = theirs.restore(4, args=v0.args.Composite(params=params))
    assert found["params"]["w"].tolist() == [4, 1, 2]


def test_refusals(tmp_path):
    with pytest.raises(CheckpointError, match="every=0, keep=-1: these are counts"):
        Checkpointer(tmp_path / "x", every=0, keep=-1)
    with pytest.raises(CheckpointError, match='the mode is "min" or "max"'):
        Checkpointer(tmp_path / "x", best=Best("loss", 1, "least"))
    with Checkpointer(tmp_path, best=Best("loss")) as checkpoints:
        with pytest.raises(CheckpointError, match="has no checkpoint; its steps are"):
            checkpoints.restore()
        for metrics in (None, {"los": 1.0}, {"loss": float("nan")}):
            with pytest.raises(CheckpointError, match='go by "loss"'):
                checkpoints.save(1, model(1), binding=W, metrics=metrics)
        checkpoints.save(1, model(1), binding=W, metrics={"loss": np.float32(0.5)})
        with pytest.raises(CheckpointError, match="has step 1 already"):
            checkpoints.save(1, model(1), binding=W, metrics={"loss": 1.0})
        with pytest.raises(CheckpointError, match="has step 1, and steps go up: step 0 would"):
            checkpoints.save(0, model(0), binding=W, metrics={"loss": 1.0})
        with pytest.raises(CheckpointError, match=r"has no step 2; its steps are \[1\]"):
            checkpoints.restore(step=2)
        with pytest.raises(CheckpointError, match="no array of numbers"):
            checkpoints.save(3, model(3), {"a": "x"}, binding=W, metrics={"loss": 1.0})
        assert checkpoints.steps == [1] and checkpoints.restore().step == 1


def test_an_error_inside_is_the_one_that_comes_out(tmp_path):
    with pytest.raises(KeyError), Checkpointer(tmp_path) as checkpoints:
        checkpoints.save(1, model(1), binding=W)
        raise KeyError
    assert js.orbax.restore(tmp_path / "1").step == 1, "and what was begun is ended"


def test_progress_is_shown(tmp_path, monkeypatch):
    seen = []
    monkeypatch.setattr(Progress, "update", lambda self, task, completed: seen.append(completed))
    with Checkpointer(tmp_path, progress=True) as checkpoints:
        checkpoints.save(3, {"w": np.zeros(1000)}, binding=W)
        checkpoints.wait()
        assert seen[-1] == 8000
        assert 8000 <= written(tmp_path, 3) < 20_000 and written(tmp_path, 4) == 0
