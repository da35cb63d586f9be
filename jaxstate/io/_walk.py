"""Walks objects that came from a file or from a caller, without recursion and without trusting them.

Both may contain themselves, nest 200 000 deep, or share a few tuples so that they unfold to 2**60 leaves.
Everything downstream may then recurse, print and compare: what passes here is of a sane depth and size.
"""

from collections.abc import Iterable, Iterator

from jaxstate.errors import FileError

from ._records import Opaque

MAX_DEPTH = 200
MAX_UNFOLDED = 10_000_000
"""How many nodes an object may unfold to, beyond eight times the nodes that it really has."""

Path = tuple | None
"""Steps from the root, innermost first: `(step, path of the parent)`; spelled only for an error."""


def children(node: object) -> Iterable[tuple[object, object]] | None:
    """Pairs (step, child) of a container, None for a leaf. A step is a key, an index or a Field."""
    if isinstance(node, dict):
        return _dict_children(node)
    if isinstance(node, (list, tuple)):
        return enumerate(node)
    if isinstance(node, (set, frozenset)):
        return ((Field("{...}"), child) for child in node)
    return _opaque_children(node) if isinstance(node, Opaque) else None


class Field(str):
    """A step that is spelled as it stands."""


def _dict_children(node: dict) -> Iterator[tuple[object, object]]:
    yield from node.items()
    if hasattr(node, "_metadata"):
        yield Field("._metadata"), getattr(node, "_metadata")  # noqa: B009


def _opaque_children(node: Opaque) -> Iterator[tuple[object, object]]:
    yield Field(".function"), node.function
    yield Field(".args"), node.args
    yield Field(".state"), node.state
    for key, value in node.items:
        yield Field(".items[...]"), key
        yield Field(".items[...]"), value
    for value in node.elements:
        yield Field(".elements[...]"), value


def spell(path: Path, root: str = "obj") -> str:
    """The path as Python source.

    >>> spell((0, ("params", ("optimizer", None))))
    'obj["optimizer"]["params"][0]'
    """
    steps = []
    while path is not None:
        step, path = path
        steps.append(_spell_step(step))
    return root + "".join(reversed(steps))


def linked(steps: Iterable[object]) -> Path:
    """Steps from the root as a path.

    >>> spell(linked(["optimizer", "params", 0]))
    'obj["optimizer"]["params"][0]'
    """
    path = None
    for step in steps:
        path = (step, path)
    return path


def _spell_step(step: object) -> str:
    if isinstance(step, Field):
        return step
    if isinstance(step, str):
        return f'["{step[:200]}"]'
    return f"[{step!r}]" if isinstance(step, (int, float, tuple, type(None))) else "[...]"


class _Frame:
    """A container whose children are being walked."""

    __slots__ = ("node", "path", "rest", "height", "size")

    def __init__(self, node: object, path: Path, rest: Iterable[tuple[object, object]]):
        self.node, self.path, self.rest = node, path, iter(rest)
        self.height, self.size = 0, 1

    def add(self, height: int, size: int) -> None:
        self.height = max(self.height, height + 1)
        self.size += size


def walk(root: object, name: str = "obj") -> Iterator[tuple[object, Path]]:
    """Every container once and every occurrence of a leaf, parents first, with the path to it.

    Raises:
        FileError: the object contains itself, nests deeper than MAX_DEPTH, or unfolds to far more nodes
            than it has.
    """
    done: dict[int, tuple[int, int]] = {}
    active: set[int] = set()
    frames = [_Frame(None, None, [(None, root)])]
    seen = 0
    while frames:
        frame = frames[-1]
        step, node = next(frame.rest, (None, frame))
        if node is frame:
            _leave(frames, done, active)
            _check_size(frame.size, seen, name)
            continue
        path = None if len(frames) == 1 else (step, frame.path)
        inside = children(node)
        if inside is not None and id(node) in done:
            frame.add(*done[id(node)])
            _check_depth(len(frames) + done[id(node)][0], path, name)
            continue
        if inside is None:
            frame.size += 1
        else:
            _check_cycle(node, active, path, name)
            _check_depth(len(frames), path, name)
            active.add(id(node))
            frames.append(_Frame(node, path, inside))
        seen += 1
        yield node, path


def _leave(frames: list[_Frame], done: dict[int, tuple[int, int]], active: set[int]) -> None:
    frame = frames.pop()
    active.discard(id(frame.node))
    done[id(frame.node)] = frame.height, frame.size
    if frames:
        frames[-1].add(frame.height, frame.size)


def _check_cycle(node: object, active: set[int], path: Path, name: str) -> None:
    if id(node) in active:
        raise FileError(f"{spell(path, name)} contains itself")


def _check_depth(depth: int, path: Path, name: str) -> None:
    if depth > MAX_DEPTH:
        raise FileError(f"{spell(path, name)[:200]}... nests deeper than {MAX_DEPTH} levels")


def _check_size(size: int, seen: int, name: str) -> None:
    if size > MAX_UNFOLDED + 8 * seen:
        raise FileError(
            f"{name} unfolds to {size} values although it holds {seen}: its parts share each other"
        )
