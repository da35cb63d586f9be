"""JSON from a file: one object, in which no key stands twice."""

import json

from jaxstate.errors import FileError


def parsed(text: bytes, what: str, floats: bool = False) -> dict:
    """The object that the text holds.

    Args:
        text: UTF-8.
        what: what it is, for the error.
        floats: whether numbers may be other than whole.

    Raises:
        FileError: no JSON object, nested too deep, or with a key twice, where readers disagree which counts.

    >>> parsed(b'{"a": [1, 2]}', "the header")
    {'a': [1, 2]}
    """
    try:
        found = json.loads(
            text.decode(),
            object_pairs_hook=_unique,
            parse_constant=_refused,
            parse_float=float if floats else _refused,
        )
    except (ValueError, RecursionError) as error:
        raise FileError(f"{what} is not proper JSON: {str(error)[:200]}") from error
    if type(found) is not dict:
        raise FileError(f"{what} is not a JSON object")
    return found


def _unique(pairs: list[tuple[str, object]]) -> dict:
    result = dict(pairs)
    if len(result) != len(pairs):
        raise FileError("a key stands twice; readers disagree which counts")
    return result


def _refused(text: str) -> None:
    raise FileError(f"the number {text[:40]}, where only whole numbers are due")
