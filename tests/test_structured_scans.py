"""What is read off the equation of a scan, whichever way JAX writes it down."""

import jax
import jax.numpy as jnp

from jaxprune.structured import trace


def run(a, b, state, xs):
    """Has two constants, one of them an array of this function, one carried value, two inputs."""
    table = jnp.arange(3.0)

    def turn(state, x):
        left, right = x
        state = jnp.tanh(a * state + b * left + table * right)
        return state, (state, left)

    return jax.lax.scan(turn, state, xs)


ARGS = (jnp.ones(3), jnp.ones(3), jnp.zeros(3), (jnp.ones((4, 3)), jnp.ones((4, 3))))


def scans(fn, *args):
    closed = jax.make_jaxpr(fn)(*args)
    return [eqn for eqn in closed.jaxpr.eqns if eqn.primitive.name == 'scan']


def is_as_counted(eqn):
    """Asserts that operands and results have the shapes of the body's, or one axis more."""
    consts, carries = trace.of_scan(eqn)
    body = trace.called(eqn)
    shapes = lambda some: [atom.aval.shape for atom in some]
    whole, length = consts + carries, eqn.params['length']
    ins, outs = body.jaxpr.invars, body.jaxpr.outvars
    over = lambda some: [(length, *shape) for shape in shapes(some)]
    assert shapes(eqn.invars) == shapes(ins[:whole]) + over(ins[whole:])
    assert shapes(eqn.outvars) == shapes(outs[:carries]) + over(outs[carries:])
    assert shapes(ins[consts:whole]) == shapes(outs[:carries])


def test_constants_and_carried_values():
    (eqn,) = scans(run, *ARGS)
    assert trace.of_scan(eqn) == (3, 1)
    is_as_counted(eqn)


def test_scans_of_a_gradient():
    found = scans(jax.grad(lambda *args: run(*args)[0].sum(), (0, 2)), *ARGS)
    assert len(found) == 2
    for eqn in found:
        is_as_counted(eqn)


def test_a_scan_of_nothing():
    (eqn,) = scans(lambda x: jax.lax.scan(lambda none, x: (none, x + 1), None, x)[1], jnp.ones(3))
    assert trace.of_scan(eqn) == (0, 0)
