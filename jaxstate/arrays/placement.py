"""From a numpy view to the leaf that takes a template leaf's place: its dtype, its sharding, its own memory.

The view may be mapped from a file and transposed; it is copied once, into memory that JAX can take as it
is. A sharded template makes each process copy only the slices of its own devices. Nothing that is returned
shares memory with the view. What goes to an accelerator takes another way (`jaxstate/arrays/crossing.py`).
"""

from collections.abc import Callable, Iterable, Mapping
from math import prod
from typing import Any

import jax
import numpy as np
from jax.sharding import AbstractMesh, NamedSharding, Sharding

from jaxstate.arrays.crossing import crossed, crosses, read_ahead
from jaxstate.arrays.lazy import Box, LazyArray
from jaxstate.arrays.tiles import fill
from jaxstate.errors import BindingError

ALIGNMENT = 64  # bytes; JAX on the CPU takes over an array that starts there, and copies any other
SMALL = 1 << 14  # bytes of an array that is copied in less time than JAX takes to be told of it
MANY = 256  # such arrays that JAX is told of at once


def place(view: np.ndarray | LazyArray, template: Any) -> Any:
    """An array with the template's dtype and sharding, and this view's values.

    Of a lazy array each process makes the parts that its devices hold, each part once.

    The template may be a jax or numpy array or a `jax.ShapeDtypeStruct`. Its shape and dtype must fit: see
    `narrows`.

    >>> view = np.arange(6.0, dtype="float32").reshape(2, 3).T
    >>> bool((place(view, jax.numpy.zeros((3, 2))) == view).all())
    True
    """
    dtype = np.dtype(template.dtype)
    if isinstance(template, np.ndarray):
        return fresh(view, dtype)
    sharding = sharding_of(template)
    if crosses(sharding):
        return crossed(view if isinstance(view, LazyArray) else np.asarray(view), sharding, dtype)
    if sharding is None:
        return jax.device_put(_copied(view, ..., dtype))
    return jax.make_array_from_callback(view.shape, sharding, _once(lambda box: _copied(view, box, dtype)))


def in_turn(found: Iterable[tuple[str, Any]], templates: Mapping[str, Any]) -> Iterable[tuple[str, Any]]:
    """The arrays that are to be placed; the next is read while one crosses to an accelerator."""
    return read_ahead(found) if any(crosses(sharding_of(leaf)) for leaf in templates.values()) else found


def placed(found: Iterable[tuple[str, Any]], templates: Mapping[str, Any]) -> dict[str, Any]:
    """Every array at its template's place, one after the other.

    Those that weigh less than a call to JAX go to it many at a time.

    >>> made = placed([("w", np.ones(3)), ("b", np.zeros(2))], {"w": np.empty(3), "b": jax.numpy.ones(2)})
    >>> {path: (type(leaf).__name__, leaf.tolist()) for path, leaf in made.items()}
    {'w': ('ndarray', [1.0, 1.0, 1.0]), 'b': ('ArrayImpl', [0.0, 0.0])}
    """
    new: dict[str, Any] = {}
    waiting: dict[str, np.ndarray] = {}
    for path, view in in_turn(found, templates):
        template = templates[path]
        if view.nbytes > SMALL or isinstance(template, np.ndarray) or sharding_of(template) is not None:
            new[path] = place(view, template)
        else:
            waiting[path] = fresh(view, template.dtype)
        if len(waiting) == MANY:
            new.update(jax.device_put(waiting))
            waiting.clear()
    return {**new, **jax.device_put(waiting)}


def is_parted(template: Any) -> bool:
    """True if this leaf is to lie in parts on several devices."""
    sharding = sharding_of(template)
    return sharding is not None and not sharding.is_fully_replicated


def sharding_of(template: Any) -> Sharding | None:
    """Where a template's leaf is to lie, if it says so.

    Raises:
        BindingError: it lies on a mesh without devices, and `jax.set_mesh` does not tell these.
    """
    sharding = getattr(template, "sharding", None) if getattr(template, "committed", True) else None
    return None if sharding is None else concrete(sharding)


def concrete(sharding: Sharding) -> Sharding:
    """The sharding over the devices of the mesh that is set: `nnx.eval_shape` leaves them out.

    Raises:
        BindingError: another mesh is set, or none.
    """
    if not isinstance(sharding, NamedSharding) or not isinstance(sharding.mesh, AbstractMesh):
        return sharding
    mesh = jax.sharding.get_mesh()
    if mesh.empty or mesh.abstract_mesh != sharding.mesh:
        where = f"as {sharding.spec} on a mesh {dict(sharding.mesh.shape)}"
        raise BindingError(
            f"a leaf is to lie {where} without devices; load inside of `with jax.set_mesh(mesh):`"
        )
    return NamedSharding(mesh, sharding.spec, memory_kind=sharding.memory_kind)


def _once(make: Callable[[Box], np.ndarray]) -> Callable[[Any], np.ndarray]:
    """The same function, which makes a part once for all the devices that hold it."""
    made: dict[Any, np.ndarray] = {}

    def part(index: Any) -> np.ndarray:
        key = tuple((span.start, span.stop) for span in index)
        if key not in made:
            made[key] = make(index)
        return made[key]

    return part


def fresh(view: np.ndarray | LazyArray, dtype: Any = None) -> np.ndarray:
    """A writable, contiguous copy of a view, in memory of its own.

    >>> view = np.arange(6.0).reshape(2, 3).T
    >>> copy = fresh(view)
    >>> bool((copy == view).all()), copy.flags.c_contiguous, copy.flags.owndata
    (True, True, True)
    """
    return _written(np.empty(view.shape, dtype or view.dtype), view, ...)


def _copied(view: np.ndarray | LazyArray, box: Any, dtype: np.dtype) -> np.ndarray:
    shape = view.shape if box is ... else np.broadcast_to(0, view.shape)[box].shape
    return _written(_aligned(shape, dtype), view, box)


def _written(out: np.ndarray, view: np.ndarray | LazyArray, box: Any) -> np.ndarray:
    return view.into(out, box) if isinstance(view, LazyArray) else fill(out, np.asarray(view)[box])


def narrows(found: Any, wanted: Any) -> bool:
    """True if some value of the first dtype is none of the second.

    >>> narrows("float32", "bfloat16"), narrows("bfloat16", "float32"), narrows("int64", "int32")
    (True, False, True)
    """
    return not np.can_cast(np.dtype(found), np.dtype(wanted), casting="safe")


def _aligned(shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
    size = prod(shape) * dtype.itemsize
    memory = np.empty(size + ALIGNMENT, np.uint8)
    start = -memory.ctypes.data % ALIGNMENT
    return memory[start : start + size].view(dtype).reshape(shape)
