"""The joints of the piecewise activations, and derivatives there by Keras on a framework.

    KERAS_BACKEND=jax python tests/support/joints.py

prints them as JSON, in the order of `POINTS`.
"""

import json

from fastgru import activations

# Name, parameters, joints. All numbers are exact in float32.
JOINTS = [
    ("relu", {}, [0]),
    ("relu", {"negative_slope": 0.25}, [0]),
    ("relu", {"negative_slope": 0.25, "threshold": 1.0}, [0, 1]),
    ("relu", {"negative_slope": 0.25, "threshold": -1.0}, [-1, 0]),
    ("relu", {"threshold": 1.0}, [0, 1]),
    ("relu", {"threshold": -1.0}, [-1, 0]),
    ("relu", {"max_value": 6.0}, [0, 6]),
    ("relu", {"max_value": 2.0}, [0, 2]),
    ("relu", {"max_value": 2.0, "negative_slope": 0.25}, [0, 2]),
    ("relu", {"max_value": 6.0, "negative_slope": 0.25}, [0, 6]),
    ("relu", {"max_value": 2.0, "negative_slope": 0.25, "threshold": 1.0}, [0, 1, 2]),
    ("relu", {"max_value": 2.0, "threshold": -1.0}, [-1, 0, 2]),
    ("relu6", {}, [0, 6]),
    ("leaky_relu", {}, [0]),
    ("leaky_relu", {"negative_slope": 0.5}, [0]),
    ("elu", {}, [0]),
    ("elu", {"alpha": 0.5}, [0]),
    ("elu", {"alpha": 2.0}, [0]),
    ("selu", {}, [0]),
    ("celu", {}, [0]),
    ("celu", {"alpha": 0.5}, [0]),
    ("celu", {"alpha": 2.0}, [0]),
    ("squareplus", {}, [0]),
    ("soft_shrink", {}, [-0.5, 0.5]),
    ("soft_shrink", {"threshold": 0.0}, [0]),
    ("hard_shrink", {}, [-0.5, 0.5]),
    ("hard_shrink", {"threshold": 0.0}, [0]),
    ("threshold", {"threshold": 0.5, "default_value": 0.25}, [0.5]),
    ("hard_tanh", {}, [-1, 1]),
    ("hard_sigmoid", {}, [-3, 3]),
    ("hard_silu", {}, [-3, 3]),
    ("sparse_plus", {}, [-1, 1]),
    ("sparse_sigmoid", {}, [-1, 1]),
    ("softsign", {}, [0]),
    ("softplus", {}, [0]),
    ("log_sigmoid", {}, [0]),
    ("tanh_shrink", {}, [0]),
]
POINTS = [(name, params, float(x)) for name, params, joints in JOINTS for x in joints]


def activation(name, params):
    return activations.Activation(name, params)


def of_keras():
    """Return Keras' derivative at each point, on the backend that the environment names."""
    import keras

    if keras.backend.backend() == "torch":
        import torch

        def derivative(function, x):
            x = torch.tensor([x], requires_grad=True, device="cpu")
            function(x).sum().backward()
            return float(x.grad[0])
    else:
        import jax

        def derivative(function, x):
            return float(jax.grad(lambda x: function(x[None])[0])(jax.numpy.float32(x)))

    def at(name, params, x):
        function = getattr(keras.activations, name)
        return derivative(lambda x: function(x, **params), x)

    return [at(*point) for point in POINTS]


if __name__ == "__main__":
    print(json.dumps(of_keras()))
