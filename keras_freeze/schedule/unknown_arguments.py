"""Arguments that `Schedule` doesn't have: what may be meant by them."""

from __future__ import annotations

from keras_freeze.errors import ScheduleError, names_unknown
from keras_freeze.schedule import plateau, stage

# Arguments of single stages, which a schedule as a whole is given by mistake.
OF_STAGES = {"Stage": stage.KEYS, "Plateau": plateau.KEYS}
known_only = names_unknown(ScheduleError, OF_STAGES, of="Schedule")
