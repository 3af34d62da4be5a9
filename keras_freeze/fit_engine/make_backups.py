"""Makes the backups of a `fit` from its parts."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from keras_freeze.fit_engine.backups import Backups
from keras_freeze.fit_engine.callback_states import CallbackStates
from keras_freeze.fit_engine.describe_run import describe_model, describe_run
from keras_freeze.fit_engine.state_of_fit import StateOfFit
from keras_freeze.keras_internals import callbacks_of_fit

if TYPE_CHECKING:
    from keras_freeze.fit_engine.conductor import Conductor


def make_backups(callback: Any, conductor: Conductor, ours: list[Any]) -> Backups:
    """Returns the backups of a `fit` that begins; looks for one to continue from.

    Args:
        callback: the BackupAndRestore.
        conductor: controls the fit; its parts are complete.
        ours: the public callbacks in the list.

    Raises:
        FreezeError: there is a backup, but it is damaged, or from another run.
    """
    model, plan, rates = conductor.model, conductor.plan, conductor.rates
    state = StateOfFit(
        model=model,
        plan=plan,
        clock=conductor.clock,
        rates=rates,
        changes=conductor.changes,
        triggers=conductor.triggers,
        stops=conductor.stops,
        caching=conductor.caching,
        callbacks=CallbackStates(conductor.callback_list, ours),
        iterator=callbacks_of_fit.epoch_iterator(),
    )
    cache = conductor.caching.callback if conductor.caching is not None else None
    run = describe_run(model, plan, rates.original(), rates.mode, cache)
    about = {"model": describe_model(plan), "run": run}
    views = cache is not None and cache.views is not None
    params = conductor.callback_list.params
    backups = Backups(callback, state, params, about, keeps_views=views)
    backups.find()
    return backups
