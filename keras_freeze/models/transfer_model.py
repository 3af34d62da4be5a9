"""TransferModel: a base and a head as one model, whose `fit` freezes and unfreezes the base."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import keras

from keras_freeze.callbacks.freeze_base import FreezeBase
from keras_freeze.callbacks.gradual_unfreeze import GradualUnfreeze
from keras_freeze.errors import FreezeError, closest, warn
from keras_freeze.fit_engine.first_and_last_callbacks import PublicCallback
from keras_freeze.graph.layer_tree import Layer, LayerTree
from keras_freeze.graph.selector_scope import Scope
from keras_freeze.graph.selectors import select
from keras_freeze.models import join_base_and_head, serialized_settings, support_clone_model
from keras_freeze.models.added_callbacks import add_ours
from keras_freeze.models.support_clone_model import CompileConfig, Setup
from keras_freeze.schedule.schedule import Schedule

ARGUMENTS = ("augment", "schedule", "cache", "name")


@keras.saving.register_keras_serializable(package="keras_freeze")
class TransferModel(keras.Model):
    """A base and a head as one model, whose `fit` freezes and unfreezes the base by itself.

    It is made for tools that call `fit` for you, such as `keras.wrappers.SKLearnClassifier` in a
    pipeline or search of scikit-learn, or KerasTuner. It is a functional `keras.Model`: `compile`,
    `evaluate`, `predict`, `summary` and `save` are Keras' own. `fit` adds `FreezeBase(base)`,
    `GradualUnfreeze(schedule)` and `BottleneckCache` to its `callbacks`; one that you pass
    yourself is used instead. They print what they do unless `verbose=0`.

    The `.keras` file holds the schedule and the cache's arguments too; a selector that is a layer
    or a function is saved as the names of the layers that it matches.
    `keras.models.clone_model`, which scikit-learn's wrappers call, returns a TransferModel with a
    fresh head and the same weights of base and augmentation. Compile the model before it is cloned.

    Args:
        base: a model whose inputs are known: functional, or Sequential with a `keras.Input`.
        head: a layer, a model or a list of layers, called on the base's output in order; or a
            number of classes, for global average pooling (if the output has spatial axes) and a
            softmax.
        augment: a layer, a model or a list of layers before the base; None = nothing. The inputs
            are those of the base, or those of a model that comes first here.
        schedule: as in `GradualUnfreeze`; None = the base stays frozen.
        cache: None = no cache; True; a dict of `BottleneckCache`'s arguments; or a
            `BottleneckCache`. After random augmentation only validation can be cached, with a
            `CacheWarning`, unless epochs are recorded: `{"views": 3}`. `"auto"` = a cache unless
            the augmentation is random.
        name: the name of the model.
        surplus: not used; pass all arguments after `head` by name.
        unknown: not used.

    Attributes:
        base: the base.
        head: a list of the head's layers.
        augment: a list of the layers before the base.
        schedule: a `Schedule`, or None.
        cache: the `BottleneckCache` that `fit` uses, with its `stats`; or None.

    Raises:
        FreezeError: an argument is invalid, or the shapes of two parts don't fit.
        ScheduleError: `schedule` is invalid.
        CacheError: `cache` is invalid.

    Examples:
        >>> base = keras.Sequential([keras.Input((4,)), keras.layers.Dense(8, name="block1")])
        >>> model = TransferModel(base, 3, schedule={2: "block1"}, cache=True)
        >>> model.compile("adam", "sparse_categorical_crossentropy")
        >>> x, y = np.random.rand(8, 4), np.zeros(8)
        >>> history = model.fit(x, y, epochs=3, verbose=0)
        >>> history.history["stage"], model.cache.stats.base_passes
        ([0, 0, 1], 1.0)
        >>> plain = model.unwrap()  # can be loaded without keras_freeze
    """

    def __init__(
        self,
        base: Any,
        head: Any,
        *surplus: Any,
        augment: Any = None,
        schedule: Any = None,
        cache: Any = None,
        name: str | None = None,
        **unknown: Any,
    ):
        _refuse(surplus, unknown)
        if support_clone_model.is_graph(base):  # as `clone_model` calls it
            super().__init__(base, head, name=name)
            self._set_up(Setup())
            return
        join_base_and_head.check_base(base)
        before = [] if augment is None else join_base_and_head.read_layers("augment", augment)
        stages = None if schedule is None else Schedule(schedule)
        cached = serialized_settings.read_cache(cache, before)
        inputs, outputs, behind = join_base_and_head.join(base, head, before)
        super().__init__(inputs, outputs, name=name)
        follows = serialized_settings.follows_fit(cache)
        self._set_up(Setup(base, behind, before, stages, cached, follows))

    def _set_up(self, setup: Setup) -> None:
        self.base = setup.base
        self.head = setup.head
        self.augment = setup.augment
        self.schedule = setup.schedule
        self.cache = setup.cache
        self._cache_follows_fit = setup.cache_follows_fit
        self._remember({})

    def _remember(self, begun: dict[int, int]) -> None:
        """Stores the epochs at which stages after a trigger began, for a later `initial_epoch`.

        Keras must not track the dict.
        """
        object.__setattr__(self, "begun", begun)

    @property
    def backbone(self) -> Layer:
        """The base, under the name that KerasHub uses and `FreezeBase()` looks for."""
        return self.base

    def fit(
        self,
        x: Any = None,
        y: Any = None,
        batch_size: Any = None,
        epochs: int = 1,
        verbose: Any = "auto",
        callbacks: Any = None,
        *rest: Any,
        **options: Any,
    ) -> Any:
        """Trains the model through its stages, with the arguments of `keras.Model.fit`."""
        ours = self._callbacks(int(verbose != 0))
        joined = add_ours(callbacks, ours, self)
        try:
            return super().fit(x, y, batch_size, epochs, verbose, joined, *rest, **options)
        finally:
            for callback in ours:
                if isinstance(callback, GradualUnfreeze):
                    self._remember(callback.begun)

    def _callbacks(self, verbose: int) -> list[PublicCallback]:
        self._check_base_is_known()
        ours: list[PublicCallback] = [FreezeBase(self.base, verbose=verbose)]
        if self.schedule is not None:
            unfreeze = GradualUnfreeze(self.schedule, verbose=verbose)
            unfreeze.begun = dict(self.begun)
            ours.append(unfreeze)
        if self.cache is not None:
            if self._cache_follows_fit:
                self.cache.verbose = verbose
            ours.append(self.cache)
        return ours

    def _check_base_is_known(self) -> None:
        if self.base is None:
            raise FreezeError(
                f"{self.name!r} doesn't know which of its layers are the base: it was made from "
                "tensors, or cloned from a model that wasn't compiled. Use TransferModel(base, "
                "head, ...), and compile the model before it is cloned."
            )

    def unwrap(self) -> keras.Model:
        """Returns a plain functional model, which can be loaded without keras_freeze.

        Layers and weights are shared. If this model is compiled, the plain one is too, with the
        same arguments and a fresh optimizer. If that fails, for example because a loss is a custom
        function that isn't registered, it isn't compiled and a warning is shown.
        """
        plain = keras.Model(self.input, self.output, name=self.name)
        if self.compiled:
            try:
                plain.compile_from_config(self.get_compile_config())
            except (TypeError, ValueError) as error:
                warn(
                    "The unwrapped model isn't compiled, because the compile arguments of this "
                    f"model can't be copied. Compile it yourself. {error}",
                )
        return plain

    def get_config(self) -> dict[str, Any]:
        self._check_base_is_known()
        save = keras.saving.serialize_keras_object
        return {
            "name": self.name,
            "trainable": self.trainable,
            "base": save(self.base),
            "head": [save(layer) for layer in self.head],
            "augment": [save(layer) for layer in self.augment],
            "schedule": serialized_settings.schedule_to_plain(self.schedule, self._paths),
            "cache": serialized_settings.cache_to_plain(self.cache, self._cache_follows_fit),
        }

    @classmethod
    def from_config(cls, config: Mapping[str, Any], custom_objects: Any = None) -> TransferModel:
        def load(saved: Any) -> Any:
            return keras.saving.deserialize_keras_object(saved, custom_objects=custom_objects)

        model = cls(
            load(config["base"]),
            [load(layer) for layer in config["head"]],
            augment=[load(layer) for layer in config["augment"]],
            schedule=serialized_settings.schedule_from_plain(config["schedule"]),
            cache=config["cache"],
            name=config["name"],
        )
        if not config["trainable"]:
            model.trainable = False  # True would unfreeze what is frozen below
        return model

    def _paths(self, selector: Any) -> list[str]:
        """Returns the paths of the layers that a selector matches, as a selector."""
        inner, outer = LayerTree(self.base), LayerTree(self)
        leaves = select(Scope(inner), selector, where="`schedule`", fallback=Scope(outer))
        return [(inner if leaf in inner else outer).paths(leaf)[-1] for leaf in leaves]

    def get_compile_config(self) -> dict[str, Any] | None:
        config: dict[str, Any] | None = super().get_compile_config()
        if not config or self.base is None:
            return config
        setup = Setup(
            self.base,
            list(self.head),
            list(self.augment),
            self.schedule,
            self.cache,
            self._cache_follows_fit,
        )
        return CompileConfig(config, setup)

    def compile_from_config(self, config: Any) -> None:
        super().compile_from_config(config)
        if self.base is None and isinstance(config, CompileConfig):
            self._set_up(support_clone_model.setup_of_clone(self, config.setup))


def _refuse(surplus: tuple[Any, ...], unknown: Mapping[str, Any]) -> None:
    listed = "`base` and `head`, and the keywords `augment`, `schedule`, `cache` and `name`"
    if surplus:
        raise FreezeError(f"TransferModel takes {listed}. Received: {surplus[0]!r} after `head`")
    for key, value in unknown.items():
        raise FreezeError(
            f"TransferModel has no argument {key!r}.{closest(key, ARGUMENTS)} It takes {listed}. "
            f"Received: {key}={value!r}"
        )


support_clone_model.keep_class(TransferModel)
