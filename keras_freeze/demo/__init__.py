"""The demo behind `keras-freeze demo`, and a small base and digits for the examples of the docs."""

from keras_freeze.demo.demo_command import run_demo
from keras_freeze.demo.measured_run import Result
from keras_freeze.demo.small_digits import digits_transfer

__all__ = ["Result", "digits_transfer", "run_demo"]
