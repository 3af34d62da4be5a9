"""Makes an unknown argument of `Schedule` an error that names the closest valid one."""

from __future__ import annotations

from keras_freeze.errors import ScheduleError, names_unknown
from keras_freeze.schedule import plateau, stage

# Arguments of single stages, which users may pass to the schedule by mistake.
OF_STAGES = {"Stage": stage.KEYS, "Plateau": plateau.KEYS}
known_only = names_unknown(ScheduleError, OF_STAGES, of="Schedule")
