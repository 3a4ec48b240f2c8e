"""A small causal convolutional language model over bytes, and one step of its training."""

import math

import jax
import jax.numpy as jnp
import optax
from flax import nnx
from jaxtyping import Array, Float, UInt8

_WIDTH = 48
_REACHES = (1, 2, 4, 8, 16, 32)  # bytes that each block looks back: 63 bytes of context in all
_LEARNING_RATE = 5e-3


class _Block(nnx.Module):
    """A residual block: each position sees itself and the position `reach` bytes before it."""

    def __init__(self, reach: int, rngs: nnx.Rngs):
        self.reach = reach
        self.widen = nnx.Linear(2 * _WIDTH, 2 * _WIDTH, rngs=rngs)
        self.narrow = nnx.Linear(2 * _WIDTH, _WIDTH, rngs=rngs)

    def __call__(self, x: Float[Array, "rows length width"]) -> Float[Array, "rows length width"]:
        # Padded in front and cut at the end: no position sees a later byte.
        earlier = jnp.pad(x, ((0, 0), (self.reach, 0), (0, 0)))[:, : x.shape[1]]
        return x + self.narrow(jax.nn.relu(self.widen(jnp.concatenate([x, earlier], axis=-1))))


class LanguageModel(nnx.Module):
    """Logits of the next byte at every position."""

    def __init__(self, rngs: nnx.Rngs):
        self.embedding = nnx.Embed(256, _WIDTH, rngs=rngs)
        self.blocks = nnx.List([_Block(reach, rngs) for reach in _REACHES])
        self.norm = nnx.RMSNorm(_WIDTH, rngs=rngs)
        self.head = nnx.Linear(_WIDTH, 256, rngs=rngs)

    def __call__(self, text: UInt8[Array, "rows length"]) -> Float[Array, "rows length 256"]:
        x = self.embedding(text.astype(jnp.int32))
        for block in self.blocks:
            x = block(x)
        return self.head(self.norm(x))


def new_learner() -> tuple[LanguageModel, nnx.Optimizer]:
    """An untrained model and its optimizer, with the same parameters at every call."""
    model = LanguageModel(nnx.Rngs(0))
    return model, nnx.Optimizer(model, optax.adam(_LEARNING_RATE), wrt=nnx.Param)


@nnx.jit
def train_step(
    model: LanguageModel, optimizer: nnx.Optimizer, tokens: UInt8[Array, "rows length"]
) -> Float[Array, " rows"]:
    """Train on `tokens`. Returns the loss of each row before the update, in bits per byte."""

    def mean_loss(model: LanguageModel) -> tuple[Float[Array, ""], Float[Array, " rows"]]:
        nats = optax.softmax_cross_entropy_with_integer_labels(model(tokens[:, :-1]), tokens[:, 1:].astype(jnp.int32))
        bits = nats.mean(axis=1) / math.log(2)
        return bits.mean(), bits

    gradients, bits = nnx.grad(mean_loss, has_aux=True)(model)
    optimizer.update(model, gradients)
    return bits
