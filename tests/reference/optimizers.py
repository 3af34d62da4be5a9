"""The optimizers in plain NumPy. Each variable has its own age.

The formulas come from the papers named in the docstrings, in float64 and without Keras. If Keras
documents or computes a different variant than the paper, a comment names it: the reference must
match a fresh Keras optimizer. The slots have Keras' names, except Adafactor's.

Variables share nothing. `age` is the number of updates of a variable, so a paper's step `t`, which
counts from 1, is `age + 1`.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import KW_ONLY, dataclass, field
from itertools import pairwise
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
Slots = dict[str, Array]
Values = dict[str, Array]


class Rule(Protocol):
    """The interface of an optimizer for the trainer."""

    def slots(self, value: Array) -> Slots:
        """Returns the initial slots of one variable."""

    def update(self, value: Array, grad: Array, slots: Slots, age: int, lr: float) -> Array:
        """Returns the variable's next value and updates its slots in place."""


def decay(average: Array, sample: Array, rate: float) -> Array:
    """Updates an exponential moving average with one sample."""
    return rate * average + (1 - rate) * sample


def shrink(value: Array, lr: float, rate: float) -> Array:
    """Decays a weight separately from its gradient (Loshchilov & Hutter 2019, arXiv 1711.05101).

    The paper multiplies the rate only by the schedule. Keras, like most libraries, multiplies it by
    the whole learning rate.
    """
    return value - lr * rate * value


def norm(*arrays: Array) -> float:
    """Returns the Euclidean norm of all arrays together."""
    return math.sqrt(sum(float(np.sum(a**2)) for a in arrays))


@dataclass(frozen=True, kw_only=True)
class SGD:
    """Momentum as in Sutskever et al., "On the importance of initialization ...", ICML 2013.

    Nesterov's look-ahead has the form of Bengio et al. 2012 (arXiv 1212.0901): the variable is the
    look-ahead point, so the gradient is taken at the weights themselves.
    """

    momentum: float = 0.0
    nesterov: bool = False

    def slots(self, value: Array) -> Slots:
        return {"momentum": np.zeros_like(value)} if self.momentum else {}

    def update(self, value: Array, grad: Array, slots: Slots, age: int, lr: float) -> Array:
        if not self.momentum:
            return value - lr * grad
        # The learning rate is inside the velocity, so changing it affects only new gradients.
        velocity = slots["momentum"] = self.momentum * slots["momentum"] - lr * grad
        return value + (self.momentum * velocity - lr * grad if self.nesterov else velocity)


@dataclass(frozen=True, kw_only=True)
class RMSprop:
    """Tieleman & Hinton 2012 (Coursera lecture 6e); centered: Graves 2013 (arXiv 1308.0850).

    Epsilon is inside the root, as in Graves' equation 40 and in Keras' code. Keras' docstring names
    Adam's "epsilon hat", which is outside.
    """

    rho: float = 0.9
    momentum: float = 0.0
    epsilon: float = 1e-7
    centered: bool = False

    def slots(self, value: Array) -> Slots:
        used = {"velocity": True, "momentum": self.momentum > 0, "average_gradient": self.centered}
        return {name: np.zeros_like(value) for name, wanted in used.items() if wanted}

    def update(self, value: Array, grad: Array, slots: Slots, age: int, lr: float) -> Array:
        step = lr * grad / np.sqrt(self._variance(grad, slots) + self.epsilon)
        if self.momentum > 0:
            step = slots["momentum"] = self.momentum * slots["momentum"] + step
        return value - step

    def _variance(self, grad: Array, slots: Slots) -> Array:
        slots["velocity"] = decay(slots["velocity"], grad**2, self.rho)
        if not self.centered:
            return slots["velocity"]
        slots["average_gradient"] = decay(slots["average_gradient"], grad, self.rho)
        return slots["velocity"] - slots["average_gradient"] ** 2


@dataclass(frozen=True, kw_only=True)
class Moments:
    """The running first and second moments of the gradient, as in Adam and its variants."""

    beta_1: float = 0.9
    beta_2: float = 0.999
    epsilon: float = 1e-7

    def slots(self, value: Array) -> Slots:
        return {"momentum": np.zeros_like(value), "velocity": np.zeros_like(value)}

    def _moments(self, grad: Array, slots: Slots) -> tuple[Array, Array]:
        slots["momentum"] = decay(slots["momentum"], grad, self.beta_1)
        slots["velocity"] = decay(slots["velocity"], grad**2, self.beta_2)
        return slots["momentum"], slots["velocity"]


@dataclass(frozen=True, kw_only=True)
class Adam(Moments):
    """Kingma & Ba, ICLR 2015 (arXiv 1412.6980); AMSGrad: Reddi et al., ICLR 2018.

    Keras documents the formula right before section 2.1: the step size includes the bias
    correction, and "epsilon hat" is added to the uncorrected root.
    """

    amsgrad: bool = False

    def slots(self, value: Array) -> Slots:
        largest = {"velocity_hat": np.zeros_like(value)} if self.amsgrad else {}
        return super().slots(value) | largest

    def update(self, value: Array, grad: Array, slots: Slots, age: int, lr: float) -> Array:
        t = age + 1
        mean, second = self._moments(grad, slots)
        if self.amsgrad:
            # Reddi et al. correct no bias. Keras takes their maximum but keeps Adam's step size.
            second = slots["velocity_hat"] = np.maximum(slots["velocity_hat"], second)
        alpha = lr * math.sqrt(1 - self.beta_2**t) / (1 - self.beta_1**t)
        return value - alpha * mean / (np.sqrt(second) + self.epsilon)


@dataclass(frozen=True, kw_only=True)
class AdamW(Adam):
    """Adam with decoupled weight decay (Loshchilov & Hutter, ICLR 2019, arXiv 1711.05101)."""

    weight_decay: float = 0.004

    def update(self, value: Array, grad: Array, slots: Slots, age: int, lr: float) -> Array:
        return super().update(shrink(value, lr, self.weight_decay), grad, slots, age, lr)


@dataclass(frozen=True, kw_only=True)
class Nadam(Moments):
    """Dozat, "Incorporating Nesterov Momentum into Adam", ICLR 2016 workshop.

    The schedule is `beta_1 * (1 - 0.5 * 0.96 ** t)`. The older tf.keras documented, and PyTorch
    has, an exponent of `0.004 * t`, that is t / 250. Keras 3 has no such factor, so its momentum
    warms up 250 times as fast. As in all variants, the mean decays by the constant beta_1.
    """

    def update(self, value: Array, grad: Array, slots: Slots, age: int, lr: float) -> Array:
        t = age + 1
        mean, second = self._moments(grad, slots)
        ahead = self._momentum(t + 1) * mean / (1 - self._product(t + 1))
        now = (1 - self._momentum(t)) * grad / (1 - self._product(t))
        return value - lr * (ahead + now) / (np.sqrt(second / (1 - self.beta_2**t)) + self.epsilon)

    def _momentum(self, t: int) -> float:
        return self.beta_1 * (1 - 0.5 * 0.96**t)

    def _product(self, t: int) -> float:
        # Keras keeps this product in one variable for all weights. Here the age determines it.
        return math.prod(self._momentum(i) for i in range(1, t + 1))


@dataclass(frozen=True, kw_only=True)
class Adamax:
    """Kingma & Ba, ICLR 2015 (arXiv 1412.6980), algorithm 2.

    The paper divides by the norm alone. Keras documents `norm + epsilon`, which avoids 0/0 for a
    weight that had no gradient yet.
    """

    beta_1: float = 0.9
    beta_2: float = 0.999
    epsilon: float = 1e-7

    def slots(self, value: Array) -> Slots:
        return {"momentum": np.zeros_like(value), "norm": np.zeros_like(value)}

    def update(self, value: Array, grad: Array, slots: Slots, age: int, lr: float) -> Array:
        mean = slots["momentum"] = decay(slots["momentum"], grad, self.beta_1)
        largest = slots["norm"] = np.maximum(self.beta_2 * slots["norm"], np.abs(grad))
        return value - lr / (1 - self.beta_1 ** (age + 1)) * mean / (largest + self.epsilon)


@dataclass(frozen=True, kw_only=True)
class Adagrad:
    """Duchi, Hazan & Singer, JMLR 12, 2011.

    The paper adds its delta outside the root and starts the sum at zero. Keras adds epsilon inside
    and starts at `initial_accumulator_value`, so the first step is less than the learning rate.
    """

    initial_accumulator_value: float = 0.1
    epsilon: float = 1e-7

    def slots(self, value: Array) -> Slots:
        return {"accumulator": np.full_like(value, self.initial_accumulator_value)}

    def update(self, value: Array, grad: Array, slots: Slots, age: int, lr: float) -> Array:
        total = slots["accumulator"] = slots["accumulator"] + grad**2
        return value - lr * grad / np.sqrt(total + self.epsilon)


@dataclass(frozen=True, kw_only=True)
class Adadelta:
    """Zeiler 2012 (arXiv 1212.5701), algorithm 1. The paper has no learning rate, so `lr=1` there.

    As in Keras, the learning rate scales the step, but not the running mean of squared steps.
    """

    rho: float = 0.95
    epsilon: float = 1e-7

    def slots(self, value: Array) -> Slots:
        names = ("accumulated_grad", "accumulated_delta_var")
        return {name: np.zeros_like(value) for name in names}

    def update(self, value: Array, grad: Array, slots: Slots, age: int, lr: float) -> Array:
        grads = slots["accumulated_grad"] = decay(slots["accumulated_grad"], grad**2, self.rho)
        delta = -self._rms(slots["accumulated_delta_var"]) / self._rms(grads) * grad
        deltas = decay(slots["accumulated_delta_var"], delta**2, self.rho)
        slots["accumulated_delta_var"] = deltas
        return value + lr * delta

    def _rms(self, mean_square: Array) -> Array:
        return np.sqrt(mean_square + self.epsilon)


@dataclass(frozen=True, kw_only=True)
class Lion:
    """Chen et al., "Symbolic Discovery of Optimization Algorithms", 2023 (arXiv 2302.06675)."""

    beta_1: float = 0.9
    beta_2: float = 0.99

    def slots(self, value: Array) -> Slots:
        return {"momentum": np.zeros_like(value)}

    def update(self, value: Array, grad: Array, slots: Slots, age: int, lr: float) -> Array:
        direction = np.sign(decay(slots["momentum"], grad, self.beta_1))
        slots["momentum"] = decay(slots["momentum"], grad, self.beta_2)
        return value - lr * direction


@dataclass(frozen=True, kw_only=True)
class Lamb(Moments):
    """You et al., "Large Batch Optimization for Deep Learning", ICLR 2020 (arXiv 1904.00962).

    Algorithm 2, with the identity for phi and one variable as a "layer". The paper adds the weight
    decay to the ratio before it takes the norm. Keras applies it separately, so it is missing here.
    """

    def update(self, value: Array, grad: Array, slots: Slots, age: int, lr: float) -> Array:
        t = age + 1
        mean, second = self._moments(grad, slots)
        root = np.sqrt(second / (1 - self.beta_2**t)) + self.epsilon
        ratio = mean / (1 - self.beta_1**t) / root
        return value - lr * self._trust(value, ratio) * ratio

    def _trust(self, value: Array, ratio: Array) -> float:
        # If a norm is zero (e.g. a new bias), the authors' code and Keras use a trust ratio of one.
        weight, step = norm(value), norm(ratio)
        return weight / step if weight > 0 and step > 0 else 1.0


@dataclass(frozen=True, kw_only=True)
class Ftrl:
    """McMahan et al., "Ad Click Prediction: a View from the Trenches", KDD 2013, algorithm 1.

    Keras generalizes the paper's square root to `n ** -learning_rate_power`, starts `n` above zero,
    doubles lambda_2 (its docstring shows the paper's form without doubling) and adds shrinkage to
    the gradient, but not to `n`. `z` starts at zero, so the first update moves a pretrained weight
    most of the way to zero. A fresh Keras optimizer does the same.
    """

    learning_rate_power: float = -0.5
    initial_accumulator_value: float = 0.1
    l1_regularization_strength: float = 0.0
    l2_regularization_strength: float = 0.0
    l2_shrinkage_regularization_strength: float = 0.0
    beta: float = 0.0

    def slots(self, value: Array) -> Slots:
        n = np.full_like(value, self.initial_accumulator_value)
        return {"accumulator": n, "linear": np.zeros_like(value)}

    def update(self, value: Array, grad: Array, slots: Slots, age: int, lr: float) -> Array:
        power, old = -self.learning_rate_power, slots["accumulator"]
        new = slots["accumulator"] = old + grad**2
        sigma = (new**power - old**power) / lr
        shrunk = grad + 2 * self.l2_shrinkage_regularization_strength * value
        z = slots["linear"] = slots["linear"] + shrunk - sigma * value
        scale = (self.beta + new**power) / lr + 2 * self.l2_regularization_strength
        closed_form = -(z - np.sign(z) * self.l1_regularization_strength) / scale
        return np.where(np.abs(z) <= self.l1_regularization_strength, 0.0, closed_form)


@dataclass(frozen=True, kw_only=True)
class Adafactor:
    """Shazeer & Stern, ICML 2018 (arXiv 1804.04235), algorithms 4 to 6.

    The slots are the paper's sums over rows and columns. Keras stores means and, in one more
    slot, their product, which gives the same update. Algorithm 6 has 0.01 where Keras has the
    learning rate. `relative_step` is here only for its name: Keras always uses the smaller of the
    learning rate and `1 / sqrt(t)`, so turning it off changes nothing there.
    """

    beta_2_decay: float = -0.8
    epsilon_1: float = 1e-30
    epsilon_2: float = 1e-3
    clip_threshold: float = 1.0
    relative_step: bool = True

    def slots(self, value: Array) -> Slots:
        # The paper factors matrices. Keras also factors the last two axes of arrays with more axes.
        if value.ndim < 2:
            return {"velocity": np.zeros_like(value)}
        return {"rows": np.zeros_like(value.sum(-1)), "columns": np.zeros_like(value.sum(-2))}

    def update(self, value: Array, grad: Array, slots: Slots, age: int, lr: float) -> Array:
        t = age + 1
        relative = min(lr, 1 / math.sqrt(t))
        alpha = max(self.epsilon_2, self._rms(value)) * relative
        second = self._second_moment(grad**2 + self.epsilon_1, slots, 1 - t**self.beta_2_decay)
        step = grad / np.sqrt(second)
        return value - alpha * step / max(1.0, self._rms(step) / self.clip_threshold)

    def _second_moment(self, square: Array, slots: Slots, rate: float) -> Array:
        if square.ndim < 2:
            slots["velocity"] = decay(slots["velocity"], square, rate)
            return slots["velocity"]
        rows = slots["rows"] = decay(slots["rows"], square.sum(-1), rate)
        columns = slots["columns"] = decay(slots["columns"], square.sum(-2), rate)
        shares = rows / rows.sum(-1, keepdims=True)
        return np.asarray(shares[..., :, None] * columns[..., None, :])

    def _rms(self, x: Array) -> float:
        return math.sqrt(np.mean(x**2))


@dataclass
class State:
    """The trainer's state for one trainable variable.

    Attributes:
        slots: The rule's slots.
        age: Number of updates so far.
        average: The moving average of the value, if there is one yet.
        total: The sum of the gradients since the last update.
        seen: The number of these gradients.
    """

    slots: Slots
    age: int = 0
    average: Array | None = None
    total: Array | float = 0.0
    seen: int = 0


@dataclass
class Trainer:
    """Trains a changing set of variables as documented for `optimizer="carry"`.

    A variable that stays trainable keeps its state, a frozen one loses it, an unfrozen one starts
    as in a fresh optimizer. They share only `iterations`, which counts every step of the run.
    in a fresh optimizer. Only `iterations`, which counts every step of the run, is common to all.

    Attributes:
        rule: The optimizer.
        lr: The learning rate, or a function of `iterations`. Like Keras' schedules, it gets raw
            steps, even if gradients are accumulated.
        weight_decay: The rate of decoupled decay. `AdamW` has its own, so omit it there.
        clipnorm: Largest norm of one variable's gradient.
        global_clipnorm: Largest norm of the gradients of all trainable variables together.
        clipvalue: Largest absolute value in a gradient.
        use_ema: Whether to keep a moving average of each variable.
        ema_momentum: The share of the old average that stays at each step.
        gradient_accumulation_steps: Steps per update. Windows are aligned with `iterations`.
        iterations: Steps since the run began.
        scales: Each variable's share of the rate, if less than the whole.
        ramps: The update count at which a variable's warm-up begins, and its number of updates.
        states: The state of each trainable variable.
    """

    rule: Rule
    lr: float | Callable[[int], float]
    _: KW_ONLY
    weight_decay: float | None = None
    clipnorm: float | None = None
    global_clipnorm: float | None = None
    clipvalue: float | None = None
    use_ema: bool = False
    ema_momentum: float = 0.99
    gradient_accumulation_steps: int | None = None
    iterations: int = field(default=0, init=False)
    scales: dict[str, float] = field(default_factory=dict, init=False)
    ramps: dict[str, tuple[int, int]] = field(default_factory=dict, init=False)
    states: dict[str, State] = field(default_factory=dict, init=False)

    @property
    def updates(self) -> int:
        """The number of updates since the run began."""
        return self.iterations // (self.gradient_accumulation_steps or 1)

    def thaw(self, name: str, value: Array) -> None:
        """Makes a variable trainable. If it already is, it keeps its state."""
        if name not in self.states:
            self.states[name] = State(self.rule.slots(np.asarray(value, np.float64)))

    def freeze(self, name: str) -> None:
        """Freezes a variable and drops its state."""
        self.states.pop(name, None)

    def step(self, grads: Mapping[str, Array], values: Mapping[str, Array]) -> Values:
        """Does one training step.

        Args:
            grads: The gradient of each trainable variable. Those of frozen variables are ignored.
            values: The value of every variable.

        Returns:
            The new value of every variable. Frozen variables don't change.
        """
        new = {name: np.array(value, np.float64) for name, value in values.items()}
        self._accumulate(grads)
        updating = (self.iterations + 1) % (self.gradient_accumulation_steps or 1) == 0
        if updating:
            new |= self._update(self._clip(self._mean_gradients()), new)
        if self.use_ema:
            self._follow(new)
        self._advance(updating)
        return new

    def finalize(self, values: Mapping[str, Array]) -> Values:
        """Returns the values, with those of trainable variables replaced by their averages."""
        averages = {name: state.average for name, state in self.states.items()}
        return dict(values) | {name: a for name, a in averages.items() if a is not None}

    def _accumulate(self, grads: Mapping[str, Array]) -> None:
        for name, state in self.states.items():
            state.total = state.total + np.asarray(grads[name], np.float64)
            state.seen += 1

    def _mean_gradients(self) -> Values:
        # The divisor is the number seen, not the window. Otherwise, the first step of a variable
        # unfrozen inside a window would be too short.
        return {name: np.asarray(s.total / s.seen) for name, s in self.states.items()}

    def _clip(self, grads: Values) -> Values:
        # Clipping comes after averaging. The global norm includes only trainable variables.
        if self.clipvalue is not None:
            limit = self.clipvalue
            return {name: np.clip(grad, -limit, limit) for name, grad in grads.items()}
        if self.clipnorm is not None:
            return {name: self._rescale(g, norm(g), self.clipnorm) for name, g in grads.items()}
        if self.global_clipnorm is not None:
            total = norm(*grads.values())
            return {n: self._rescale(g, total, self.global_clipnorm) for n, g in grads.items()}
        return grads

    def _rescale(self, grad: Array, length: float, limit: float) -> Array:
        return grad * limit / max(length, limit)

    def _update(self, grads: Values, values: Values) -> Values:
        lr = self.lr(self.iterations) if callable(self.lr) else self.lr
        return {name: self._update_one(name, g, values[name], lr) for name, g in grads.items()}

    def _update_one(self, name: str, grad: Array, value: Array, lr: float) -> Array:
        state = self.states[name]
        lr *= self.scales.get(name, 1.0)
        if name in self.ramps:
            start, steps = self.ramps[name]
            lr *= min(1.0, (self.updates - start + 1) / steps)
        if self.weight_decay is not None:
            value = shrink(value, lr, self.weight_decay)
        return self.rule.update(value, grad, state.slots, state.age, lr)

    def _follow(self, values: Values) -> None:
        # Keras updates the averages at every raw step, even if the step updates nothing, and
        # restarts them until the first update is done.
        for name, state in self.states.items():
            rate = 0.0 if state.age == 0 else self.ema_momentum
            old = values[name] if state.average is None else state.average
            state.average = decay(old, values[name], rate)

    def _advance(self, updated: bool) -> None:
        self.iterations += 1
        for state in self.states.values() if updated else ():
            state.age, state.total, state.seen = state.age + 1, 0.0, 0


class MLP:
    """A chain of dense layers with mean squared error, for gradients without a framework.

    Args:
        layers: Each layer's name and its activation, "tanh" or "linear". The variables are
            `f"{name}/kernel"` of shape (inputs, outputs) and `f"{name}/bias"` of shape (outputs,).
    """

    def __init__(self, layers: Sequence[tuple[str, str]]) -> None:
        for name, activation in layers:
            if activation not in ("tanh", "linear"):
                raise ValueError(f"`{name}` needs tanh or linear. Received: {activation!r}")
        self.layers = tuple(layers)

    def forward(self, x: Array, values: Mapping[str, Array]) -> Array:
        """Returns the outputs, (batch, outputs), for inputs of shape (batch, inputs)."""
        return self._outputs(x, values)[-1]

    def gradients(
        self, x: Array, y: Array, values: Mapping[str, Array]
    ) -> tuple[float, dict[str, Array]]:
        """Returns the loss, a mean over (batch, outputs), and its gradient for every variable."""
        outputs = self._outputs(x, values)
        error = outputs[-1] - y
        grads, flowing = {}, 2 * error / error.size
        chain = zip(self.layers, pairwise(outputs), strict=True)
        for (name, activation), (before, after) in reversed(list(chain)):
            if activation == "tanh":
                flowing = flowing * (1 - after**2)
            grads[f"{name}/kernel"], grads[f"{name}/bias"] = before.T @ flowing, flowing.sum(0)
            flowing = flowing @ values[f"{name}/kernel"].T
        return float(np.mean(error**2)), grads

    def _outputs(self, x: Array, values: Mapping[str, Array]) -> list[Array]:
        outputs = [np.asarray(x, np.float64)]
        for name, activation in self.layers:
            linear = outputs[-1] @ values[f"{name}/kernel"] + values[f"{name}/bias"]
            outputs.append(np.tanh(linear) if activation == "tanh" else linear)
        return outputs
