"""torch's two methods as pure functions, `state_dict` and `load_state_dict`, and `bind` between them.

`js.load_state_dict(model, sd)` is `torch.nn.Module.load_state_dict` unbound, and without the mutation.
"""

from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import jax
import numpy as np

from jaxstate.adapters import adapter_of
from jaxstate.adapters._flattening import with_flattens
from jaxstate.adapters._options import Options
from jaxstate.adapters._reading import rules_of
from jaxstate.alignment import Alignment, aligned
from jaxstate.alignment import align as align_binding
from jaxstate.arrays.foreign import dtype_of, without_tensors
from jaxstate.arrays.lazy import LazyArray
from jaxstate.arrays.placement import fresh, is_parted, narrows, placed, sharding_of
from jaxstate.binding import AnyRule, Binding, matches
from jaxstate.comparison import Comparison
from jaxstate.errors import BindingError, StateDictError, quoted
from jaxstate.io import Opaque
from jaxstate.original import warnings_of
from jaxstate.together import processes_of, together


def bind(
    model: Any,
    *inputs: Any,
    like: Mapping[str, Any] | None = None,
    rename: Mapping[str, str] | None = None,
    rules: Sequence[AnyRule] = (),
    layers: Mapping[type, Callable[[Any], Sequence[AnyRule]]] | None = None,
    attention: str | None = None,
    multilayer: str | Sequence[str] = (),
    stacked: Mapping[str, int] | None = None,
    as_is: str | Sequence[str] = (),
    flatten: Mapping[str, tuple[int, ...] | None] | None = None,
    kwargs: Mapping[str, Any] | None = None,
    original: Any = None,
) -> Binding:
    """Read a model: which torch key each of its leaves has, in which layout, in torch's order.

    Layouts come from the types of the live modules, never from ranks or sizes. Nothing is computed: the
    model and the inputs may be abstract (`nnx.eval_shape`, `jax.ShapeDtypeStruct`).

    Args:
        model: an NNX module; an Equinox module, or `(model, state)` if it is stateful; a Linen module
            (unbound) or what `hk.transform` returns, with example inputs; a pytree, with `rules` or `as_is`.
        *inputs: example inputs of the model's call, with which it is traced. They tell a Linen module's
            layers, and where a model flattens images, whose axes torch has in another order.
        like: a state_dict of the same model, for what only a file knows (`Binding.like`). If it has other
            names than the model, they are paired on evidence (`js.align` shows it), or refused.
        rename: the file's names for the model's, as patterns: `{"layers_{i}": "encoder.layer.{i}"}`; what
            is below a name goes with it. All other arguments speak of the model's own names.
        rules: Rules for single leaves, in place of what would be read; paths from the model's root.
        layers: for a class of modules, a function from such a module to its Rules, names relative to it.
            A class of your own can have them itself, as a method `torch_rules(self)`.
        attention: "packed" for torch.nn.MultiheadAttention, "separate" for four Linear layers; by default
            the first where torch's module can hold the weights.
        multilayer: names (patterns) of lists of RNNs that are the layers of one torch RNN, LSTM or GRU.
        stacked: for a scanned or vmapped module which axis of its leaves counts the layers, where shapes
            do not tell; "" is the model itself, as an ensemble of models.
        as_is: paths (patterns) of arrays outside of known layers whose axes torch has in the same order.
        flatten: for a layer that reads a flattened image, the image's `(C, H, W)`, or None to take its
            weights as they are; `{}` says that nothing is flattened.
        kwargs: keyword arguments of the model's call.
        original: what the model was ported from, to compare what both are set to (`Binding.warnings`): the
            torch module, which may be on torch's meta device; or a config of transformers or the dictionary
            of a config.json, which tell less. With inputs it is also seen which GELU the model computes.

    Raises:
        BindingError: what cannot be known is listed with the Rule or argument to pass.

    >>> from flax import nnx
    >>> print(bind(nnx.Linear(3, 5, rngs=nnx.Rngs(0))))
    torch key  path    layout      shape   dtype
    ---------  ------  ----------  ------  -------
    weight     kernel  i o -> o i  (3, 5)  float32
    bias       bias    o -> o      (5,)    float32

    A Linen module has no arrays; its binding fits its variables, and its parameters on their own.

    >>> from flax import linen
    >>> bind(linen.Dense(5), jax.ShapeDtypeStruct((1, 3), "float32")).paths
    ('params.kernel', 'params.bias')

    A tree of arrays does not know its layers, so it is said.

    >>> from jaxstate.rules.rule import Rule
    >>> bind({"w": np.zeros((2, 3)), "b": np.zeros(3)}, rules=[Rule("weight", "w", "i o -> o i")]).shapes
    {'weight': (3, 2), 'b': (3,)}
    """
    if like is not None:
        _check_mapping(like)
    options = Options(
        inputs=inputs,
        kwargs=dict(kwargs or {}),
        rules=rules,
        layers=dict(layers or {}),
        attention=attention,
        multilayer=(multilayer,) if isinstance(multilayer, str) else tuple(multilayer),
        stacked=dict(stacked or {}),
        as_is=(as_is,) if isinstance(as_is, str) else tuple(as_is),
        flatten=flatten,
    )
    reading = adapter_of(model).read(model, options)
    read = with_flattens(rules_of(reading, options), reading, options)
    binding = Binding(tuple(read)).of(reading.leaves)
    if rename is not None:
        binding = binding.renamed(rename)
    binding = binding if like is None else aligned(binding, like).like(like)
    if original is None:
        return binding
    return replace(binding, warnings=warnings_of(reading, options, binding, original))


def align(model: Any, state_dict: Mapping[str, Any], binding: Binding | None = None) -> Alignment:
    """Which keys of a file a model's keys are, where the names differ, and on what evidence: a table.

    `bind(model, like=state_dict)` makes use of it if it is complete. Nothing is raised for what is not.

    Args:
        model: as for `bind`.
        state_dict: the file's arrays by torch's keys.
        binding: the model's, in its own names; needed where the model does not tell its layers.

    >>> x = np.zeros((2, 3))
    >>> align(None, {"module.w": x}, bind({"w": x}, as_is="w")).rename
    {'w': 'module.w'}
    """
    return align_binding(bind(model) if binding is None else binding, state_dict)


def state_dict(
    model: Any,
    binding: Binding | None = None,
    *,
    prefix: str = "",
    destination: Mapping[str, Any] | None = None,
    recurse: bool = True,
    lazy: bool = False,
) -> "OrderedDict[str, Any]":
    """A model's parameters and buffers under torch's keys, in torch's order, layouts and shapes.

    The arrays are numpy, contiguous, writable, and share memory with nothing, except that tied keys hold
    one array. As in torch, the result carries `_metadata` with the modules' versions.

    Args:
        model: an NNX or Equinox module, `(model, state)`, a Linen model's variables, Haiku's parameters or
            `(params, state)`, or any pytree that the binding fits: gradients, moments, averages. A tree of
            the parameters alone gives the parameters alone.
        binding: needed where the model does not tell its layers.
        prefix: put before every key.
        destination: entries to put in front, as when two models are saved in one; it is not changed.
        recurse: False for the model's own entries without those of its submodules.
        lazy: True for LazyArrays over the model's leaves, to be saved: `js.save` makes one after the other
            and copies none as a whole. They hold the model's arrays, and so the values that these have when
            they are written.

    Raises:
        BindingError: leaves that do not fit the binding, or hold what torch has no place for.

    >>> import jax.numpy as jnp
    >>> from jaxstate.rules.rule import Rule
    >>> model, binding = {"w": jnp.arange(6.0).reshape(2, 3)}, Binding((Rule("weight", "w", "i o -> o i"),))
    >>> lazy = state_dict(model, binding, lazy=True)["weight"]
    >>> type(lazy).__name__, lazy.shape, bool((np.asarray(lazy) == model["w"].T).all())
    ('LazyArray', (3, 2), True)
    """
    leaves = adapter_of(model).leaves(model)
    binding, collection = fitting(binding, model, leaves)
    leaves = {collection + path: leaf for path, leaf in leaves.items()}
    if refused := [line for rule in binding.rules for line in rule.refused_leaves(leaves)]:
        raise BindingError("torch cannot hold these leaves:\n\t" + "\n\t".join(refused))
    if abstract := [path for path, leaf in leaves.items() if isinstance(leaf, jax.ShapeDtypeStruct)]:
        raise BindingError(f"these leaves are abstract and have no values: {quoted(abstract)}")
    arrays = binding.in_order({key: _owned(array, lazy) for key, array in binding.each_array(leaves)})
    entries = {prefix + key: array for key, array in arrays.items() if recurse or "." not in key}
    if taken := sorted(set(entries) & set(destination or ())):
        raise BindingError(f"destination has these keys already: {quoted(taken)}; give another prefix")
    return with_metadata({**(destination or {}), **entries}, destination, binding, prefix)


def load_state_dict(
    model: Any,
    state_dict: Mapping[str, Any],
    binding: Binding | None = None,
    *,
    strict: bool = True,
    only: str | Sequence[str] | None = None,
    prefix: str = "",
    cast: bool = False,
) -> Any:
    """A new model with the values of a state_dict, placed and typed like `model`.

    Args:
        model: the template: whatever `state_dict` takes. Its leaves may be abstract or sharded; each process
            then reads its own slices only.
        state_dict: arrays by torch's keys; numpy, jax, or torch tensors.
        binding: needed where the model does not tell its layers.
        strict: False to ignore unexpected keys, and to keep the model's own values for missing ones.
        only: patterns of keys to load; the rest of the model stays as it is, the rest of the file is
            not looked at (`Binding.compare(state_dict, only)` lists both).
        prefix: load the entries below this prefix, as of a submodule; others are not looked at.
        cast: accept that values are rounded to the model's dtype.

    Returns:
        a model of the same type. `nnx.update(model, nnx.state(new))` puts it into a live NNX module.

    Raises:
        StateDictError: everything that is missing, unexpected, misshapen, contradictory or would be
            rounded, at once, in torch's words. Shapes must fit even if not strict. Of a model that lies on
            several processes, each of which calls this: another one has failed.
        BindingError: a binding that does not fit the model.
    """
    with together("js.load_state_dict", _of_another, _processes(model)):
        return moved_in(
            model, state_dict, binding, placed, is_parted, strict=strict, only=only, prefix=prefix, cast=cast
        )


def moved_in(
    model: Any,
    state_dict: Mapping[str, Any],
    binding: Binding | None,
    placed: Callable[[Iterable[tuple[str, Any]], Mapping[str, Any]], Mapping[str, Any]],
    is_parted: Callable[[Any], bool],
    *,
    strict: bool = True,
    only: str | Sequence[str] | None = None,
    prefix: str = "",
    cast: bool = False,
) -> Any:
    """`load_state_dict` with leaves that another function makes.

    Args:
        placed: `({(path, leaf)}, templates) -> {path: leaf}`, of the templates' shapes and dtypes.
        is_parted: whether `placed` asks for this template's leaf in parts; it is given a `LazyArray` then.
    """
    _check_mapping(state_dict)
    model_leaves, with_leaves, without_values = adapter_of(model).opened(model)
    binding, collection = fitting(binding, model, model_leaves)
    leaves = {collection + path: leaf for path, leaf in model_leaves.items()}
    part = binding if only is None else binding.only(only)
    arrays = _chosen(state_dict, prefix, only)
    untouched: set[str] = set()
    if not strict:
        comparison = part.compare(arrays)
        untouched = _untouched(part, comparison)
        arrays = _completed(part, arrays, leaves, comparison)
    parted = {path for path in part.paths if is_parted(leaves[path])}
    arrays = part.agreeing(arrays, parted)
    _check(part, arrays, leaves, cast, _name_of(model))
    found = ((path, leaf) for path, leaf in part.each_leaf(arrays, parted) if path not in untouched)
    new = placed(found, leaves)
    _check_values(leaves, new, without_values)
    return with_leaves({path.removeprefix(collection): leaf for path, leaf in new.items()})


def _processes(model: Any) -> tuple[int, ...]:
    """The processes that the model lies on."""
    if jax.process_count() == 1:
        return (jax.process_index(),)
    found = map(sharding_of, adapter_of(model).leaves(model).values())
    return processes_of([sharding for sharding in found if sharding is not None])


def _of_another(problem: str) -> StateDictError:
    return StateDictError("the model", problems=[problem])


def _check_mapping(state_dict: Any) -> None:
    """Raise torch's TypeError for what is no dict, with a hint for what holds one."""
    if not isinstance(state_dict, Mapping):
        whole = ": js.io.state_dict_of(record) gives that of a module that was pickled whole"
        hint = whole if isinstance(state_dict, Opaque) else ""
        raise TypeError(f"Expected state_dict to be dict-like, got {type(state_dict)}{hint}.")


def _name_of(model: Any) -> str:
    """The model's class; of a model with its state, the model's."""
    return type(model[0] if type(model) is tuple and model else model).__name__


def fitting(binding: Binding | None, model: Any, leaves: Mapping[str, Any]) -> tuple[Binding, str]:
    """The binding of all leaves; or of the parameters, if the tree holds just these.

    With it what the tree leaves out in front of its paths: a Linen model's parameters on their own have no
    `params.` there.
    """
    if binding is None:
        return bind(model), ""
    if set(leaves) == set(binding.paths):
        return binding.of(leaves), ""
    parameters = binding.of_parameters()
    collections = {path.partition(".")[0] + "." for path in parameters.paths if "." in path}
    for collection in ["", *collections] if len(collections) == 1 else [""]:
        whole = {collection + path: leaf for path, leaf in leaves.items()}
        if set(whole) == set(parameters.paths):
            return parameters.of(whole), collection
    return binding.of(leaves), ""


def _owned(array: Any, lazy: bool) -> Any:
    """An array in memory of its own, or a lazy one as it is."""
    return array if lazy and isinstance(array, LazyArray) else fresh(array)


def with_metadata(
    entries: Mapping[str, Any], destination: Any, binding: Binding, prefix: str
) -> "OrderedDict[str, Any]":
    """These entries as torch's state_dict, with the versions of the modules as its `_metadata`."""
    result = OrderedDict(entries)
    before = getattr(destination, "_metadata", {})
    own = {(prefix + name).removesuffix("."): dict(value) for name, value in binding.versions.items()}
    result._metadata = OrderedDict({**before, **own})  # type: ignore[attr-defined]
    return result


def _chosen(state_dict: Mapping[str, Any], prefix: str, only: Any) -> Mapping[str, Any]:
    if not prefix and only is None:
        return without_tensors(state_dict)
    patterns = ["*"] if only is None else [only] if isinstance(only, str) else list(only)
    below = {key.removeprefix(prefix): value for key, value in state_dict.items() if key.startswith(prefix)}
    return without_tensors({key: value for key, value in below.items() if matches(key, patterns)})


def _untouched(part: Binding, comparison: Comparison) -> set[str]:
    """The leaves of which a file says nothing at all: a count of batches stays with its statistics."""
    missing = set(comparison.missing_keys)
    silent = [rule for rule in part.rules if rule.keys and missing.issuperset(rule.keys)]
    return {path for rule in silent for path in rule.paths}


def _completed(
    part: Binding, arrays: Mapping[str, Any], leaves: Mapping[str, Any], comparison: Comparison
) -> Mapping[str, Any]:
    """Without what is unexpected, and with the model's own values for what is missing."""
    known = {key: array for key, array in arrays.items() if key not in comparison.unexpected_keys}
    if not comparison.missing_keys:
        return known
    own = {path: leaf for path, leaf in leaves.items() if path in set(part.paths)}
    if abstract := [path for path, leaf in own.items() if isinstance(leaf, jax.ShapeDtypeStruct)]:
        problem = f"strict=False keeps the model's own values, and {abstract[0]} is abstract and has none"
        raise StateDictError("the model", comparison.missing_keys, problems=[problem])
    if far := [p for p, x in own.items() if isinstance(x, jax.Array) and not x.is_fully_addressable]:
        problem = (
            f"strict=False keeps the model's own values, and {far[0]} lies on several processes; pass only="
        )
        raise StateDictError("the model", comparison.missing_keys, problems=[problem])
    kept = part.state_dict({path: np.asarray(leaf) for path, leaf in own.items()})
    return {**known, **{key: kept[key] for key in comparison.missing_keys}}


def _check(
    part: Binding, arrays: Mapping[str, Any], leaves: Mapping[str, Any], cast: bool, name: str
) -> None:
    comparison = part.compare(arrays)
    dtypes = [*([] if cast else _roundings(part, arrays, leaves)), *_unplaceable(leaves)]
    if not comparison or dtypes:
        error = comparison.error(name)
        raise StateDictError(name, error.missing_keys, error.unexpected_keys, [*error.problems, *dtypes])


def _roundings(part: Binding, arrays: Mapping[str, Any], leaves: Mapping[str, Any]) -> Iterator[str]:
    for rule in part.rules:
        wanted = {dtype_of(leaves[path]): path for path in rule.value_paths}
        for key in (key for key in rule.keys if hasattr(arrays.get(key), "dtype")):
            for dtype, path in wanted.items():
                if narrows(found := dtype_of(arrays[key]), dtype):
                    yield (
                        f'"{key}" is {found} and leaf {path} of the model is {dtype}, which cannot hold '
                        f"every {found}; pass cast=True to round, or build the model in {found}"
                    )


def _unplaceable(leaves: Mapping[str, Any]) -> Iterator[str]:
    for path, leaf in leaves.items():
        if isinstance(leaf, jax.ShapeDtypeStruct) and jax.dtypes.canonicalize_dtype(leaf.dtype) != leaf.dtype:
            yield f"leaf {path} is to be {leaf.dtype}, which JAX makes only with jax_enable_x64"


def _check_values(leaves: Mapping[str, Any], new: Mapping[str, Any], random: Sequence[str]) -> None:
    empty = [
        path for path, leaf in leaves.items() if path not in new and isinstance(leaf, jax.ShapeDtypeStruct)
    ]
    if empty:
        raise BindingError(
            f"these leaves of the abstract model would stay without values: {', '.join(empty)}"
        )
    if random:
        raise BindingError(
            f"random state has no value, and no file can give it one: {', '.join(random)}; before loading "
            "say nnx.update(model, jax.jit(lambda: nnx.state(Model(..., rngs=nnx.Rngs(0)), nnx.RngState))())"
        )
