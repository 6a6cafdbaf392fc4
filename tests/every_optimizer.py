"""Every gradient transformation that optax exports, ready to take steps; and why some are not."""

import inspect
import typing
import warnings

import jax
import jax.numpy as jnp
import optax
from optax import contrib

NO_BIAS = {'kernel': True, 'bias': False, 'nested': (True,)}
LABELS = {'kernel': 'a', 'bias': 'b', 'nested': 'a'}  # a prefix
UP = optax.scale(-1.0)


def deprecated(make):
    def quiet(*args, **kwargs):
        with warnings.catch_warnings():
            warnings.simplefilter('ignore', DeprecationWarning)
            return make(*args, **kwargs)

    return quiet


def as_matrices(params):
    return jax.tree.map(lambda w: contrib.MuonDimensionNumbers(0, tuple(range(1, w.ndim))), params)


def even(step, *_):
    return step % 2 == 0


# What a constructor is given by name, next to `learning_rate` where it has that; or, for those that
# wrap another optimizer, a function that makes the whole.
OPTIMIZERS = {
    'MultiSteps': lambda: optax.MultiSteps(optax.adam(0.1), 2).gradient_transformation(),
    'adabelief': {},
    'adadelta': {},
    'adafactor': {'min_dim_size_to_factor': 4},
    'adagrad': {},
    'adam': {},
    'adamax': {},
    'adamaxw': {},
    'adamw': {},
    'adan': {},
    'adaptive_grad_clip': {'clipping': 0.1},
    'add_decayed_weights': {'weight_decay': 0.1},
    'add_noise': {'eta': 0.1, 'gamma': 0.5, 'key': 0},
    'amsgrad': {},
    'apply_every': {'k': 2},
    'apply_if_finite': lambda: optax.apply_if_finite(optax.adam(0.1), 3),
    'centralize': {},
    'chain': lambda: optax.chain(optax.clip(0.1), optax.adam(0.1)),
    'clip': {'max_delta': 0.1},
    'clip_by_block_rms': {'threshold': 0.1},
    'clip_by_global_norm': {'max_norm': 0.1},
    'conditionally_mask': lambda: optax.conditionally_mask(optax.adam(0.1), even),
    'conditionally_transform': lambda: optax.conditionally_transform(optax.adam(0.1), even),
    'ema': {'decay': 0.9},
    'flatten': lambda: optax.flatten(optax.adam(0.1)),
    'freeze': {'mask': {'kernel': True, 'bias': True, 'nested': (False,)}},
    'fromage': {},
    'identity': {},
    'inject_hyperparams': lambda: optax.inject_hyperparams(optax.adam)(0.1),
    'inject_stateful_hyperparams': lambda: deprecated(optax.inject_stateful_hyperparams)(
        optax.adam
    )(0.1),
    'keep_params_nonnegative': {},
    'lamb': {},
    'lars': {},
    'lbfgs': {'memory_size': 2},
    'lion': {},
    'lookahead': lambda: optax.lookahead(optax.adam(0.1), 2, 0.5),
    'masked': lambda: optax.masked(optax.adam(0.1), NO_BIAS),
    'monitor': lambda: optax.chain(
        optax.monitor({'norm': optax.measure_with_ema(optax.tree.norm, 0.9)}), optax.adam(0.1)
    ),
    'multi_transform': lambda: optax.multi_transform(
        {'a': optax.adam(0.1), 'b': optax.sgd(0.1)}, LABELS
    ),
    'nadam': {},
    'nadamw': {},
    'named_chain': lambda: optax.named_chain(('clip', optax.clip(0.1)), ('adam', optax.adam(0.1))),
    'noisy_sgd': {'key': 0},
    'normalize_by_update_norm': {},
    'novograd': {},
    'optimistic_adam': {},
    'optimistic_adam_v2': {},
    'optimistic_gradient_descent': {},
    'partition': lambda: optax.partition({'a': optax.adam(0.1), 'b': optax.sgd(0.1)}, LABELS),
    'polyak_sgd': {},
    'radam': {},
    'rmsprop': {'momentum': 0.9, 'centered': True},
    'rprop': {},
    'scale': {'step_size': -0.1},
    'scale_by_adadelta': {},
    'scale_by_adam': {},
    'scale_by_adamax': {},
    'scale_by_adan': {},
    'scale_by_amsgrad': {},
    'scale_by_backtracking_linesearch': lambda: optax.chain(
        UP, optax.scale_by_backtracking_linesearch(5, store_grad=True)
    ),
    'scale_by_belief': {},
    'scale_by_distance_over_gradients': {},
    'scale_by_factored_rms': {'min_dim_size_to_factor': 4},
    'scale_by_lbfgs': {'memory_size': 2},
    'scale_by_learning_rate': {},
    'scale_by_lion': {},
    'scale_by_novograd': {},
    'scale_by_optimistic_gradient': {},
    'scale_by_param_block_norm': {},
    'scale_by_param_block_rms': {},
    'scale_by_polyak': {},
    'scale_by_radam': {},
    'scale_by_rms': {},
    'scale_by_rprop': {},
    'scale_by_rss': {},
    'scale_by_schedule': {'step_size_fn': optax.linear_schedule(-0.1, -0.01, 3)},
    'scale_by_sign': {},
    'scale_by_sm3': {},
    'scale_by_stddev': {},
    'scale_by_trust_ratio': {},
    'scale_by_yogi': {},
    'scale_by_zoom_linesearch': lambda: optax.chain(UP, optax.scale_by_zoom_linesearch(5)),
    'selective_transform': lambda: optax.selective_transform(
        optax.adam(0.1), freeze_mask={'kernel': False, 'bias': True, 'nested': (False,)}
    ),
    'set_to_zero': {},
    'sgd': {'momentum': 0.9, 'nesterov': True},
    'sign_sgd': {},
    'signum': {},
    'sm3': {},
    'snapshot': {'measure_name': 'norm', 'measure': optax.tree.norm},
    'stateless': {'f': lambda updates, params: jax.tree.map(lambda u: -u, updates)},
    'stateless_with_tree_map': {'f': lambda u, w: -0.1 * u if w is None else w - u},
    'trace': {'decay': 0.9},
    'with_extra_args_support': lambda: optax.with_extra_args_support(optax.adam(0.1)),
    'yogi': {},
    'zero_nans': {},
    'contrib.acprop': {},
    'contrib.ademamix': {},
    'contrib.adopt': {},
    'contrib.cocob': {},
    'contrib.dadapt_adamw': {'estim_lr0': 0.1},
    'contrib.differentially_private_aggregate': {
        'l2_norm_clip': 1.0,
        'noise_multiplier': 0.1,
        'key': 0,
    },
    'contrib.dog': {},
    'contrib.dowg': {},
    'contrib.dpsgd': {'l2_norm_clip': 1.0, 'noise_multiplier': 0.1, 'seed': 0, 'momentum': 0.9},
    'contrib.galore': {'rank': 4},
    'contrib.hutchinson_estimator_diag_hessian': {},
    'contrib.madgrad': {},
    'contrib.mechanize': lambda: contrib.mechanize(optax.adam(0.1), s_init=0.1),
    'contrib.momo': {},
    'contrib.momo_adam': {},
    'contrib.muon': {},
    'contrib.normalize': {},
    'contrib.prodigy': {'estim_lr0': 0.1},
    'contrib.reduce_on_plateau': {},
    'contrib.sam': lambda: contrib.sam(optax.adam(0.1), optax.sgd(0.1)),
    'contrib.scale_by_acprop': {},
    'contrib.scale_by_ademamix': {},
    'contrib.scale_by_adopt': {},
    'contrib.scale_by_cocob': {},
    'contrib.scale_by_galore': {'rank': 4},
    'contrib.scale_by_madgrad': {},
    'contrib.scale_by_muon': lambda: optax.masked(
        contrib.scale_by_muon(weight_dimension_numbers=as_matrices), NO_BIAS
    ),
    'contrib.scale_by_simplified_ademamix': {},
    'contrib.schedule_free': lambda: contrib.schedule_free(optax.sgd(0.1), 0.1),
    'contrib.schedule_free_adamw': {'warmup_steps': 2},
    'contrib.schedule_free_sgd': {'warmup_steps': 2},
    'contrib.simplified_ademamix': {},
    'contrib.sophia': {},
    'contrib.split_real_and_imaginary': lambda: contrib.split_real_and_imaginary(optax.adam(0.1)),
}

EXCLUDED = {
    'measure_with_ema': 'its update returns a measurement, not updates: it runs inside monitor',
}

# Callables without a return annotation, or with init and update, that transform no gradients.
OTHERS = {
    'GradientTransformation': 'the type',
    'GradientTransformationExtraArgs': 'the type',
    'WrappedSchedule': 'a schedule',
    'bias_correction': 'of moments',
    'matrix_inverse_pth_root': 'linear algebra',
    'sigmoid_binary_cross_entropy': 'a loss',
    'update_infinity_moment': 'of moments',
    'update_moment': 'of moments',
    'update_moment_per_elem_norm': 'of moments',
    'contrib.schedule_free_eval_params': 'reads a state',
}

PER_EXAMPLE = {'contrib.differentially_private_aggregate', 'contrib.dpsgd'}


def find(name):
    return getattr(contrib if name.startswith('contrib.') else optax, name.split('.')[-1])


def takes_rate(name):
    return 'learning_rate' in inspect.signature(find(name)).parameters


def make(name, rate=0.1, **others):
    """The optimizer of a name, with a rate where its constructor takes one."""
    given = OPTIMIZERS[name]
    if callable(given):
        return given()
    rates = {'learning_rate': rate} if takes_rate(name) else {}
    return deprecated(find(name))(**rates, **given, **others)


def exported():
    """Names in optax and optax.contrib that may be gradient transformations: whose annotation says
    so, or that have none, or have `init` and `update`.
    """
    for prefix, module in (('', optax), ('contrib.', contrib)):
        for name in dir(module):
            value = getattr(module, name)
            if name.startswith('_') or inspect.ismodule(value) or not callable(value):
                continue
            if isinstance(value, type):
                if hasattr(value, 'init') and hasattr(value, 'update'):
                    yield prefix + name
            elif typing.get_origin(value) is None and value is not typing.Any:
                says = inspect.signature(value).return_annotation
                if says is inspect.Signature.empty or 'GradientTransformation' in str(says):
                    yield prefix + name


def weights(name=None, dtype=jnp.float32):
    keys = jax.random.split(jax.random.key(0), 3)
    params = {
        'kernel': jax.random.normal(keys[0], (6, 4), dtype),
        'bias': jax.random.normal(keys[1], (4,), dtype),
        'nested': (jax.random.normal(keys[2], (2, 3, 5), dtype),),
    }
    return optax.LookaheadParams.init_synced(params) if name == 'lookahead' else params


def loss(params, seed=0):
    """A quadratic with another minimum and curvature for each weight."""
    total = jnp.float32(0)
    for i, w in enumerate(jax.tree.leaves(params)):
        target = jnp.sin(jnp.arange(w.size) * (2.3 + i) + seed).reshape(w.shape)
        total += jnp.sum((1 + target**2) * (w.astype(jnp.float32) - target) ** 2) / 9
    return total


def gradients(name, params, seed=0):
    grads = jax.grad(loss)(params.fast if name == 'lookahead' else params, seed)
    if name in PER_EXAMPLE:
        return jax.tree.map(lambda g: jnp.stack([g, 2 * g]), grads)
    return grads


def update(tx, name, state, params, seed=0):
    """One step, given all that any optimizer asks for."""
    grads, value_fn = gradients(name, params, seed), lambda w: loss(w, seed)
    if name in {'lookahead', 'contrib.sam'}:  # these take no further arguments
        return tx.update(grads, state, params)
    if name in {'contrib.sophia', 'contrib.hutchinson_estimator_diag_hessian'}:
        return tx.update(grads, state, params, obj_fn=value_fn)
    extra = {'value': value_fn(params), 'grad': grads, 'value_fn': value_fn}
    return optax.with_extra_args_support(tx).update(grads, state, params, **extra)
