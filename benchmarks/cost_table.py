"""Parameters and multiply-accumulates that are counted, against published figures.

    python -m benchmarks.cost_table

One image of 224² for 1000 classes; nothing is computed. Published: torchvision's documentation of
its models (num_params, and _ops in GFLOPs, which are multiply-accumulates).
"""

import jax
import jax.numpy as jnp

import jaxprune as jp
from train import models

PUBLISHED = {
    'resnet50': (25_557_032, 4.089),
    'mobilenet_v2': (3_504_872, 0.301),
    'vit_b16': (86_567_656, 17.564),
}


def counted(name):
    """Counts the parameters and the multiply-accumulates of a model."""
    model = models.build(name, num_classes=1000)
    x = jax.ShapeDtypeStruct((1, 224, 224, 3), jnp.float32)
    init = lambda x: model.init(jax.random.key(0), x, train=False)
    fn = lambda variables, x: model.apply(variables, x, train=False)
    layers = jp.cost.layers(fn, jax.eval_shape(init, x), x)
    parameters = sum(layer.parameters for layer in layers if layer.path.startswith('params/'))
    return parameters, jp.cost.total(layers).macs


def main():
    print('| model | parameters | published | GMACs | published | deviation |')
    print('|---|---|---|---|---|---|')
    for name, (size, ops) in PUBLISHED.items():
        parameters, macs = counted(name)
        share = f'{macs / 1e9 / ops - 1:+.2%}'.replace('%', ' %')
        print(f'| `{name}` | {parameters:,} | {size:,} | {macs / 1e9:.4f} | {ops} | {share} |')


if __name__ == '__main__':
    main()
