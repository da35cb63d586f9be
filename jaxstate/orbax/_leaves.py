"""Leaves: what an array is, as the checkpoint's record says it, and the form in which Orbax keeps it.

Most are kept as they are. Random keys are kept as their data; element types that Orbax has no name for as
bytes; arrays without elements only in the record, since Orbax takes none; Python's numbers as 0-d arrays.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import ml_dtypes  # noqa: F401  (teaches numpy the names "bfloat16", "float8_e4m3fn", ...)
import numpy as np
from jax.sharding import NamedSharding, Sharding

from jaxstate.arrays.placement import concrete
from jaxstate.errors import CheckpointError

BYTES = ("uint2", "uint4", "float6_e2m3fn", "float6_e3m2fn", "float8_e4m3")
NUMBERS: Mapping[str, type] = {"bool": bool, "int": int, "float": float, "complex": complex}


class Kind(NamedTuple):
    """All that a template and a checkpoint must agree on; printed as `float32[2,3]`."""

    shape: tuple[int, ...]
    dtype: str

    def __str__(self) -> str:
        return f"{self.dtype}[{','.join(map(str, self.shape))}]"


class Leaf(NamedTuple):
    """What the record says of one leaf.

    Args:
        kind: of the leaf.
        stored: of the array that Orbax keeps for it.
        key: the generator, if it is a random key.
        number: the name of its type, if it is a number of Python's.
        spec: how it lay on a mesh: for each axis the names of the mesh's, or None if it lay on none.
        digests: for each region of the stored array where it starts and stops, and its checksum.
    """

    kind: Kind
    stored: Kind
    key: str | None = None
    number: str | None = None
    spec: tuple[tuple[str, ...], ...] | None = None
    digests: tuple[tuple[tuple[tuple[int, int], ...], int], ...] = ()

    @property
    def is_empty(self) -> bool:
        """True if there is nothing to store."""
        return 0 in self.stored.shape

    def to_json(self) -> dict[str, Any]:
        """The record as a JSON value.

        >>> leaf = leaf_of(np.zeros((2, 3), "float32"))
        >>> Leaf.from_json(leaf.to_json()) == leaf
        True
        """
        return self._asdict()

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> "Leaf":
        """The record of a JSON value."""
        kind, stored = (Kind(tuple(value[k][0]), value[k][1]) for k in ("kind", "stored"))
        spec = value["spec"] and tuple(map(tuple, value["spec"]))
        digests = tuple((tuple(map(tuple, region)), crc) for region, crc in value["digests"])
        return cls(kind, stored, value["key"], value["number"], spec, digests)


def kind_of(leaf: Any) -> Kind:
    """The kind of an array, of an abstract one, or of a number.

    >>> str(kind_of(jax.ShapeDtypeStruct((2, 3), "bfloat16")))
    'bfloat16[2,3]'
    """
    array = leaf if hasattr(leaf, "dtype") else np.asarray(leaf)
    return Kind(tuple(int(n) for n in array.shape), array.dtype.name)


def is_key(leaf: Any) -> bool:
    """True for a typed random key, which may be abstract."""
    dtype = getattr(leaf, "dtype", None)
    return dtype is not None and jax.numpy.issubdtype(dtype, jax.dtypes.prng_key)


def leaf_of(leaf: Any) -> Leaf:
    """What the record says of a leaf, without its digests."""
    kind, number = kind_of(leaf), type(leaf).__name__ if type(leaf) in NUMBERS.values() else None
    if is_key(leaf):
        data = jax.eval_shape(jax.random.key_data, leaf)
        return Leaf(kind, kind_of(data), str(jax.random.key_impl(leaf)), None, _spec(leaf))
    stored = kind._replace(dtype="uint8") if kind.dtype in BYTES else kind
    return Leaf(kind, stored, None, number, _spec(leaf))


def stored(leaf: Any, copy: bool) -> Any:
    """The array that Orbax keeps for a leaf; with `copy`, one that nobody else can change."""
    if is_key(leaf):
        return jax.random.key_data(leaf)
    if isinstance(leaf, jax.Array) and leaf.dtype.name not in BYTES:
        return leaf
    array = np.array(leaf, copy=copy or None)
    array = array.astype(array.dtype.newbyteorder("="), copy=False)
    return array.view(np.uint8) if array.dtype.name in BYTES else array


def is_storable(leaf: Any) -> bool:
    """True for an array of numbers or random keys that has values."""
    if not isinstance(leaf, jax.Array | np.ndarray | np.generic | bool | int | float | complex):
        return False
    return is_key(leaf) or kind_of(leaf).dtype in _STORABLE


def target(leaf: Leaf, place: Sharding | None) -> Any:
    """What tells Orbax to make the stored array in this place, or in numpy."""
    if place is None or not is_placeable(leaf.stored.dtype):
        return np.empty(leaf.stored.shape, leaf.stored.dtype)
    return jax.ShapeDtypeStruct(leaf.stored.shape, leaf.stored.dtype, sharding=place)


def empty(leaf: Leaf, place: Sharding | None) -> Any:
    """The stored array of a leaf without elements."""
    return placed(np.empty(leaf.stored.shape, leaf.stored.dtype), leaf, place)


def placed(array: Any, leaf: Leaf, place: Sharding | None) -> Any:
    """The stored array in this place, if it was read into numpy and JAX has such arrays."""
    if isinstance(array, jax.Array) or place is None or not is_placeable(leaf.stored.dtype):
        return array
    return jax.make_array_from_callback(array.shape, place, lambda index: array[index])


def unstored(array: Any, leaf: Leaf) -> Any:
    """The leaf of the array that Orbax kept: the inverse of `stored`."""
    if leaf.key is not None:
        return jax.random.wrap_key_data(array, impl=leaf.key)
    if leaf.kind.dtype in BYTES:
        return np.asarray(array).view(leaf.kind.dtype)
    return array if leaf.number is None else NUMBERS[leaf.number](array)


def place_of(template: Any) -> Sharding | None:
    """Where a template's array lies or is to lie; None for one of numpy, and for a number."""
    if not isinstance(template, jax.Array | jax.ShapeDtypeStruct):
        return None
    here = template.sharding or jax.sharding.SingleDeviceSharding(jax.devices()[0])
    return concrete(here)


def is_placeable(dtype: str) -> bool:
    """True if JAX has arrays of this dtype; those of 64 bits it has only with jax_enable_x64."""
    return jax.dtypes.canonicalize_dtype(np.dtype(dtype)) == np.dtype(dtype)


def saved_place(leaf: Leaf, mesh: jax.sharding.Mesh) -> Sharding:
    """The sharding that a leaf had, on another mesh.

    Raises:
        CheckpointError: the mesh has other names, or its sizes do not divide the leaf.
    """
    spec = leaf.spec or ()
    sizes = dict(mesh.shape)
    parts = [int(np.prod([sizes.get(name, 0) for name in names], dtype=int)) for names in spec]
    rows = list(zip(leaf.kind.shape, parts, strict=False))
    if any(part == 0 or size % part for size, part in rows):
        raise CheckpointError(
            f"{leaf.kind} lay as {list(map(list, spec))} on its mesh, and this mesh is {sizes}; give a "
            "template with shardings, or sharding= as a function of path and leaf"
        )
    return NamedSharding(mesh, jax.sharding.PartitionSpec(*(names or None for names in spec)))


def _spec(leaf: Any) -> tuple[tuple[str, ...], ...] | None:
    sharding = getattr(leaf, "sharding", None)
    if not isinstance(sharding, NamedSharding):
        return None
    rows = ((axis,) if isinstance(axis, str) else tuple(axis or ()) for axis in sharding.spec)
    return tuple(rows)


_STORABLE = frozenset(
    {"bool", "complex64", "complex128", "float16", "float32", "float64", "bfloat16", "int2", "int4", *BYTES}
    | {f"{sign}int{bits}" for sign in ("", "u") for bits in (8, 16, 32, 64)}
    | {"float8_e3m4", "float8_e4m3b11fnuz", "float8_e4m3fn", "float8_e4m3fnuz", "float8_e5m2"}
    | {"float8_e5m2fnuz", "float8_e8m0fnu", "float4_e2m1fn"}
)
