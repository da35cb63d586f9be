"""compare: every layer of both models side by side, as a table and as a plot."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from typing import Any

from jaxstate.binding import Binding
from jaxstate.table import html_table, table
from jaxstate.testing._distance import Distance, distance, kl_divergence
from jaxstate.testing._layers import Layer, Run
from jaxstate.testing._port import Layouts, Port
from jaxstate.testing._torch_side import outputs_of

COLUMNS = ("torch", "jax", "kind", "shape", "max abs", "relative", "ulps", "cosine")


@dataclass(frozen=True)
class Row:
    """One layer's output, or one of the model's own.

    Attributes:
        name, path, kind: torch's name, JAX's path, torch's class.
        shape: in torch.
        distance: of JAX's output from torch's; None where the shapes differ.
        kl: for the model's outputs, the divergence in nats if they are read as logits on the last axis.
    """

    name: str
    path: str
    kind: str
    shape: tuple[int, ...]
    distance: Distance | None
    kl: float | None = None

    @property
    def cells(self) -> tuple[str, ...]:
        head = (self.name, self.path, self.kind, str(self.shape))
        if self.distance is None:
            return (*head, "other shape", "", "", "")
        d = self.distance
        return (*head, f"{d.max_abs:.2e}", f"{d.relative:.2e}", f"{d.ulps:.0f}", f"{d.cosine:.7f}")


@dataclass(frozen=True, repr=False)
class LayerTable:
    """How far each layer's output is from torch's, in torch's order; the model's outputs come last.

    Args:
        rows: one for each call of a layer that both sides made, and for each output.
        unpaired: torch's modules that could not be compared, as those in a scan.

    >>> import numpy as np
    >>> ours, theirs = np.float32([1, 3]), np.float32([1, 4])
    >>> row = Row("fc", "dense", "Linear", (2,), distance(theirs, ours))
    >>> row.distance.relative == float(np.abs(theirs - ours).max() / np.abs(theirs).max())
    True
    >>> print(LayerTable((row,), ("scan.fc",)))
    torch  jax    kind    shape  max abs   relative  ulps     cosine
    -----  -----  ------  -----  --------  --------  -------  ---------
    fc     dense  Linear  (2,)   1.00e+00  2.50e-01  4194304  0.9970545
    not compared: scan.fc
    """

    rows: tuple[Row, ...]
    unpaired: tuple[str, ...] = ()

    def __str__(self) -> str:
        return "\n".join([table(COLUMNS, [row.cells for row in self.rows]), *self._notes()])

    __repr__ = __str__

    def _repr_html_(self) -> str:
        return html_table(COLUMNS, [row.cells for row in self.rows]) + "<br>".join(map(escape, self._notes()))

    def _notes(self) -> list[str]:
        rest = [f"not compared: {', '.join(self.unpaired)}"] if self.unpaired else []
        rows = [row for row in self.rows if row.kl is not None]
        return [*rest, *(f"KL divergence of {r.name} read as logits: {r.kl:.3g} nats" for r in rows)]

    def plot(self, ax: Any = None) -> Any:
        """Relative differences, layer by layer, on a logarithmic axis. Needs matplotlib.

        Returns:
            the matplotlib axes.
        """
        if ax is None:
            from matplotlib import pyplot

            ax = pyplot.subplots(figsize=(7, 0.6 + 0.25 * len(self.rows)))[1]
        known = [row for row in self.rows if row.distance is not None]
        values = [max(row.distance.relative, 1e-9) for row in known if row.distance]
        ax.barh(range(len(known)), values, left=1e-9)
        ax.set_yticks(range(len(known)), [row.name for row in known])
        ax.set_xscale("log")
        ax.invert_yaxis()
        ax.set_xlabel("largest difference, relative to the output's scale")
        return ax


def compare(
    torch_module: Any,
    model: Any,
    *inputs: Any,
    binding: Binding | None = None,
    kwargs: Mapping[str, Any] | None = None,
    torch_kwargs: Mapping[str, Any] | None = None,
    call: Callable[..., Any] | None = None,
    torch_call: Callable[..., Any] | None = None,
    input_layout: Layouts = None,
    output_layout: Layouts = None,
) -> LayerTable:
    """Run both and compare every layer's output; the arguments are those of `assert_same_outputs`.

    Nothing is raised for what differs.

    Returns:
        a table that prints, shows itself in a notebook, and has `.plot()`. `ulps` counts floats between
        two elements, which are many where an element is nearly zero; `relative` is what is judged.

    Raises:
        TypeError: no torch module, or a model that cannot be called.
        ParityError: a module or a model that draws at random.
        LayoutError: layouts that do not fit the arrays.

    >>> import jaxstate as js, numpy as np
    >>> from importlib.util import find_spec
    >>> if find_spec("torch"):
    ...     import torch
    ...     from flax import nnx
    ...     net, model = torch.nn.Linear(3, 5), nnx.Linear(3, 5, rngs=nnx.Rngs(0))
    ...     twice = {key: 2 * array.detach() for key, array in net.state_dict().items()}
    ...     found = compare(net, js.load_state_dict(model, twice), np.eye(3, dtype="float32")).rows
    ...     assert all(abs(row.distance.relative - 1) < 1e-5 for row in found)
    """
    calls = (kwargs or {}, torch_kwargs or {}, call, torch_call, input_layout, output_layout)
    run = Run(Port(torch_module, model, inputs, binding, *calls))
    return LayerTable((*table_of(run).rows, *_outputs(run.port)), run.unpaired)


def table_of(run: Run) -> LayerTable:
    """The layers alone."""
    return LayerTable(tuple(map(_row, run.layers)), run.unpaired)


def _row(layer: Layer) -> Row:
    array = layer.theirs.output
    shape = () if array is None else array.shape
    found = layer.output.distance if layer.output else None
    return Row(layer.name, layer.ours.name, layer.theirs.kind, shape, found)


def _outputs(port: Port) -> Sequence[Row]:
    theirs = outputs_of(port.theirs, port.run_torch)
    ours = port.in_torch_layout(port.side.outputs_of(port.ours, port.run_jax))
    kind, rows = type(port.theirs).__name__, []
    for name, array in theirs.items():
        same = name in ours and ours[name].shape == array.shape
        label = f'output "{name}"' if name else "output"
        kl = kl_divergence(array, ours[name]) if same and array.ndim > 1 and array.dtype.kind == "f" else None
        rows.append(Row(label, "", kind, array.shape, distance(array, ours[name]) if same else None, kl))
    return rows
