"""What a file says and we do not act upon: names, calls that are never made, bytes without a numpy dtype.

Or what files say that do not agree.

Records are inert. They compare and hash by identity, because a file may nest them so that comparing,
hashing or printing their contents would never end.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np


@dataclass(frozen=True, eq=False, slots=True)
class Global:
    """The name of a class, a function or a constant. It is never looked up.

    >>> Global("torch", "float32").name
    'torch.float32'
    """

    module: str
    attribute: str

    @property
    def name(self) -> str:
        return f"{self.module}.{self.attribute}" if self.module else self.attribute


@dataclass(frozen=True, eq=False, slots=True, repr=False)
class Opaque:
    """A call that the file asks for and that is not made, with all that the file would have given it.

    Attributes:
        function: what would be called; an Opaque where the file computes that too.
        args: the positional arguments.
        state: what would be set on the result (`__setstate__`, or its `__dict__`), or None.
        items: what would be stored in the result as `result[key] = value`: pairs.
        elements: what would be appended or added to the result.

    >>> Opaque(Global("torch", "device"), ("cpu",))
    Opaque(torch.device)
    """

    function: "Global | Opaque"
    args: tuple = ()
    state: object = None
    items: list[tuple[object, object]] = field(default_factory=list)
    elements: list[object] = field(default_factory=list)

    @property
    def name(self) -> str:
        """The dotted name of what would be called."""
        function = self.function
        while isinstance(function, Opaque):
            function = function.function
        return function.name

    def __repr__(self) -> str:
        return f"Opaque({self.name})"


@dataclass(frozen=True, eq=False, slots=True)
class Raw:
    """A tensor whose dtype numpy does not have: its bytes, to be handed on unchanged.

    Attributes:
        dtype: torch's name of it, such as `complex32`, or safetensors' (`F6_E2M3`) where torch has none.
        shape: the shape that the file states.
        data: uint8; for a torch dtype of shape `(*shape, itemsize)`, otherwise flat.
    """

    dtype: str
    shape: tuple[int, ...]
    data: np.ndarray


@dataclass(frozen=True, eq=False, slots=True)
class Storage:
    """The bytes of one torch storage, and the class by which the file calls it.

    Attributes:
        kind: such as `torch.QInt8Storage` or `torch.storage.UntypedStorage`.
        key: the name of its record in the file.
        numel: how many elements of that class it holds.
        data: its bytes, uint8.
    """

    kind: Global
    key: str
    numel: int
    data: np.ndarray


@dataclass(frozen=True, eq=False, slots=True, repr=False)
class PerRank:
    """A value that each rank of a `torch.distributed.checkpoint` wrote for itself, and not all the same.

    torch gives each rank its own back. Which one is meant by a reader that is none of them cannot be known.

    Attributes:
        values: of each rank, by the path of the file in which it lies.

    >>> PerRank({"net/__0_0.distcp": 3, "net/__1_0.distcp": 4})
    PerRank(net/__0_0.distcp, net/__1_0.distcp)
    """

    values: Mapping[str, object]

    def __repr__(self) -> str:
        return f"PerRank({', '.join(self.values)})"
