"""`jaxstate demo`: a checkpoint that torch wrote is opened, trained on in JAX, and written for torch again.

Nothing here needs torch. What torch itself computed, going on from the same checkpoint, stands in the file.
"""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from flax import nnx
from rich.console import Console
from rich.progress import track

import jaxstate as js
from jaxstate.demo import net as recipe
from jaxstate.display import binding_table, losses_table, optimizer_table, state_dict_table
from jaxstate.rules.declared import same_bits
from jaxstate.tree import flat

CHECKPOINT = Path(__file__).with_name("net.pt")


class Training(NamedTuple):
    """A model and its optimizer between two steps."""

    net: recipe.Net
    opt: Any
    binding: js.Binding


def resume(checkpoint: Mapping[str, Any], tx: Any) -> Training:
    """The training that a torch checkpoint holds, in JAX; the flatten is found by tracing the network."""
    image = jax.ShapeDtypeStruct((1, 32, 32, 3), "float32")
    template = nnx.eval_shape(lambda: recipe.Net(nnx.Rngs(0)))
    binding = js.bind(template, image, like=checkpoint["model_state_dict"])
    net = js.load_state_dict(template, checkpoint["model_state_dict"], binding)
    opt = tx.init(nnx.state(net, nnx.Param))
    return Training(net, js.optim.load_state_dict(opt, checkpoint["optimizer_state_dict"], binding), binding)


def train(training: Training, tx: Any, images: Any, labels: Any) -> Iterator[tuple[float, Training]]:
    """One step for each batch: the loss before it, and what it leads to."""
    graphdef, params = nnx.split(training.net)

    @jax.jit
    def step(params: Any, opt: Any, images: jax.Array, labels: jax.Array) -> Any:
        value, grads = jax.value_and_grad(lambda p: recipe.loss(nnx.merge(graphdef, p), images, labels))(
            params
        )
        updates, opt = tx.update(grads, opt, params)
        return value, jax.tree.map(lambda p, u: p + u, params, updates), opt

    opt = training.opt
    for batch in zip(images, labels.astype("int32"), strict=True):
        value, params, opt = step(params, opt, *batch)
        yield float(value), Training(nnx.merge(graphdef, params), opt, training.binding)


def run(folder: Path, console: Console) -> None:
    """The whole story, told on a console; the files that it writes go into a folder."""
    checkpoint: Any = js.load(CHECKPOINT)
    tx = js.optim.sgd(lr=0.001, momentum=0.9)
    training = resume(checkpoint, tx)
    console.print(state_dict_table(checkpoint["model_state_dict"], title="Model's state_dict"))
    console.print(optimizer_table(checkpoint["optimizer_state_dict"], title="Optimizer's state_dict"))
    console.print(
        binding_table(training.binding, title="Binding: torch's entries and the leaves of the NNX model")
    )
    following = checkpoint["next"]
    batches = train(training, tx, following["images"], following["labels"])
    steps = list(track(batches, "training on in JAX", len(following["labels"]), console=console))
    losses, trained = [value for value, _ in steps], steps[-1][1]
    console.print(losses_table(following["losses"], losses))
    files = write(trained, folder, checkpoint["epoch"] + 1)
    same = read_back(trained, tx, *files)
    console.print(conclusion(checkpoint, losses, trained, same))


def write(training: Training, folder: Path, epoch: int) -> tuple[Path, Path, Path]:
    """The training as an Orbax checkpoint, as a checkpoint for torch, and its weights as safetensors."""
    orbax, torch, safetensors = folder / f"epoch_{epoch}", folder / "net.pt", folder / "net.safetensors"
    weights = js.state_dict(training.net, training.binding)
    optimizer = js.optim.state_dict(training.opt, training.binding)
    js.orbax.save(orbax, training.net, training.opt, step=epoch, binding=training.binding)
    js.save({"epoch": epoch, "model_state_dict": weights, "optimizer_state_dict": optimizer}, torch)
    js.save(weights, safetensors)
    return orbax, torch, safetensors


def read_back(training: Training, tx: Any, orbax: Path, torch: Path, safetensors: Path) -> int:
    """How many arrays came back from the three files, each bit for bit what the training holds.

    Raises:
        AssertionError: one that did not.
    """
    weights = js.state_dict(training.net, training.binding)
    held = {"model": weights, "optimizer": js.optim.state_dict(training.opt, training.binding)}
    restored = js.orbax.restore(orbax, training.net, tx.init(nnx.state(training.net, nnx.Param)))
    again = resume(js.load(torch), tx)
    files = [
        (
            held,
            _state_dicts(Training(restored.model, restored.opt_state, restored.binding or training.binding)),
        ),
        (held, _state_dicts(again)),
        (weights, js.load(safetensors)),
    ]
    return sum(_count_same(flat(mine), flat(theirs)) for mine, theirs in files)


def conclusion(checkpoint: Mapping[str, Any], losses: list[float], trained: Training, same: int) -> str:
    """In one line what was proven."""
    before, after = checkpoint["model_state_dict"], checkpoint["next"]["model_state_dict"]
    weights = js.state_dict(trained.net, trained.binding)
    moved = max(np.abs(after[key] - before[key]).max() for key in after)
    apart = max(np.abs(weights[key] - after[key]).max() for key in after)
    loss = max(
        abs(ours / theirs - 1) for ours, theirs in zip(losses, checkpoint["next"]["losses"], strict=True)
    )
    buffers = len(checkpoint["optimizer_state_dict"]["state"])
    return (
        f"Proven without torch: {len(before)} weights and {buffers} momentum buffers out of torch's file; "
        f"{len(losses)} more steps in JAX give torch's losses to {loss:.0e} and its weights to "
        f"{apart / moved:.0e} of the way they went; {same} arrays are bit for bit the same when read back "
        "from Orbax, .pt and .safetensors."
    )


def _state_dicts(training: Training) -> dict[str, Any]:
    model = js.state_dict(training.net, training.binding)
    return {"model": model, "optimizer": js.optim.state_dict(training.opt, training.binding)}


def _count_same(mine: Mapping[str, Any], theirs: Mapping[str, Any]) -> int:
    different = [path for path in {**mine, **theirs} if not same_bits(mine.get(path), theirs.get(path))]
    if different:
        raise AssertionError(f"these did not come back: {different}")
    return len(mine)
