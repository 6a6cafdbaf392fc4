"""Modules at the widths of smaller parameters: the native twin of the rewritten program."""

import math
from collections.abc import Callable
from typing import Any

from jaxprune.tree import Params


def resized(module: Any) -> Callable[..., Any]:
    """Makes a Flax linen module run on smaller parameters.

    Each layer takes its width from its own kernel, whatever its fields say: `Dense`,
    `DenseGeneral`, `Conv`, `ConvTranspose`, `Embed` and the cells of LSTM and GRU, in any module
    that asks no other field for a width, as a reshape to a number of heads would. Where `shrink`
    keeps the 1 / C of a mean over channels, LayerNorm here divides by the new C; GroupNorm makes
    as many groups as before of the channels that stay.

    Args:
      module: a linen module, made at its full widths.

    Returns:
      A function that is called as `module.apply` is: of variables and inputs. It raises
      `ValueError` where the module itself makes parameters at a width that is fixed.

    Raises:
      ImportError: flax is not installed.
    """
    try:
        import flax.errors
        import flax.linen as nn
    except ImportError as error:
        raise ImportError("resized modules need flax: pip install 'jaxprune[train]'") from error

    def at_own_width(call: Any, args: Any, kwargs: Any, context: Any) -> Any:
        layer = context.module
        if context.method_name == 'setup' and isinstance(layer, nn.Embed):
            if layer.has_variable('params', 'embedding'):
                layer.embedding = layer.get_variable('params', 'embedding')
                return None
        if context.method_name != '__call__' or layer.is_initializing():
            return call(*args, **kwargs)
        if isinstance(layer, nn.RNN):
            return (_recurrent(nn, layer) or call)(*args, **kwargs)
        fields = _fields(nn, layer, args)
        if not fields:
            return call(*args, **kwargs)
        own = layer.clone(parent=None, name=None, **fields)
        return own.apply(layer.variables, *args, **kwargs)

    def apply(variables: Params, *args: Any, **kwargs: Any) -> Any:
        try:
            with nn.intercept_methods(at_own_width):
                return module.apply(variables, *args, **kwargs)
        except flax.errors.ScopeParamShapeError as error:
            raise ValueError(
                f'{type(module).__name__} makes a parameter at a width of its own and cannot be '
                f'resized: use the function that shrink or rewritten returns. {error}'
            ) from error

    return apply


def _recurrent(nn: Any, layer: Any) -> Callable[..., Any] | None:
    """Makes an RNN of a cell at the width of its arrays, with them; `None` where it is as wide."""
    cell = layer.cell
    params = cell.variables['params']
    gates = {name: params[name] for name in ('hi', 'hn') if name in params}
    if not gates or not isinstance(cell, nn.LSTMCell | nn.OptimizedLSTMCell | nn.GRUCell):
        raise ValueError(
            f'{type(cell).__name__} cannot be resized: use the function that shrink returns'
        )
    [gate, *_] = gates.values()
    features = gate['kernel'].shape[-1]
    if features == cell.features:
        return None
    own = layer.clone(parent=None, name=None, cell=cell.clone(parent=None, features=features))
    return lambda *args, **kwargs: own.apply({'params': {'cell': params}}, *args, **kwargs)


def _fields(nn: Any, layer: Any, args: Any) -> dict[str, Any]:
    """Finds the fields of a layer that its parameters contradict."""
    params = layer.variables.get('params', {})
    if isinstance(layer, nn.Embed):
        features = params['embedding'].shape[-1]
    elif isinstance(layer, nn.DenseGeneral):
        axes = (layer.axis,) if isinstance(layer.axis, int) else layer.axis
        own = params['kernel'].shape[len(axes) :]
        features = own[0] if isinstance(layer.features, int) else own
    elif isinstance(layer, nn.Dense | nn.Conv | nn.ConvTranspose):
        features = params['kernel'].shape[-1]
    else:
        return {}
    fields = {} if layer.features == features else {'features': features}
    if isinstance(layer, nn.Conv) and layer.feature_group_count > 1:
        groups = args[0].shape[-1] // params['kernel'].shape[-2]
        fields |= {} if groups == layer.feature_group_count else {'feature_group_count': groups}
    return fields


def rebuilt(module: Any, params: Params) -> Any:
    """Makes a Flax NNX module of smaller parameters, whose attributes say the new widths.

    Args:
      module: an NNX module, made at its full widths; it stays as it is.
      params: its smaller state, as `shrink` returned it for `nnx.split(module)[1]`.

    Returns:
      A module with the parameters. `Linear`, `LinearGeneral`, `Conv`, `ConvTranspose`, `Embed` and
      the normalisations have the widths of their own arrays; `MultiHeadAttention` the heads and
      features of its query. `GroupNorm` makes as many groups as before.

    Raises:
      ImportError: flax is not installed.
      ValueError: channels that cannot be divided into as many groups.
    """
    try:
        from flax import nnx
    except ImportError as error:
        raise ImportError("rebuilt modules need flax: pip install 'jaxprune[train]'") from error
    new = nnx.merge(nnx.split(module)[0], params)
    for _, layer in nnx.iter_graph(new):
        if isinstance(layer, nnx.LinearGeneral):
            count = len(layer.in_features)
            layer.in_features = layer.kernel.shape[:count]
            layer.out_features = layer.kernel.shape[count:]
        elif isinstance(layer, nnx.Linear | nnx.Conv | nnx.ConvTranspose):
            *_, own, written = layer.kernel.shape
            groups = layer.feature_group_count if isinstance(layer, nnx.Conv) else 1
            if isinstance(layer, nnx.Conv) and own * groups == layer.in_features and groups > 1:
                groups = groups * written // layer.out_features  # whole groups are gone
                layer.feature_group_count = groups
            layer.in_features, layer.out_features = groups * own, written
        elif isinstance(layer, nnx.Embed):
            layer.num_embeddings, layer.features = layer.embedding.shape
        elif isinstance(layer, nnx.BatchNorm | nnx.LayerNorm | nnx.RMSNorm):
            known = [x for x in (layer.scale, getattr(layer, 'bias', None)) if x is not None]
            if known:
                layer.num_features = math.prod(known[0].shape)
        elif isinstance(layer, nnx.GroupNorm):
            known = [x for x in (layer.scale, layer.bias) if x is not None]
            if known and known[0].shape[0] != layer.num_groups * layer.group_size:
                _regroup(layer, known[0].shape[0])
    for _, layer in nnx.iter_graph(new):
        if isinstance(layer, nnx.MultiHeadAttention):
            layer.in_features, layer.num_heads, layer.head_dim = layer.query.kernel.shape
            layer.qkv_features = layer.num_heads * layer.head_dim
    return new


def _regroup(layer: Any, features: int) -> None:
    """Gives a GroupNorm of NNX fewer channels in as many groups."""
    if features % layer.num_groups:
        raise ValueError(
            f'GroupNorm of {layer.num_groups * layer.group_size} channels in {layer.num_groups} '
            f'groups cannot be rebuilt with {features}: use the function that shrink returns, or '
            'keep multiples'
        )
    layer.group_size = features // layer.num_groups
