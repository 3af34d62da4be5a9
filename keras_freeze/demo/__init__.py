"""The demo behind ``keras-freeze demo``: one ``fit`` beside two, on handwritten digits."""

from keras_freeze.demo.methods import Result, digits_transfer
from keras_freeze.demo.run import run_demo

__all__ = ["Result", "digits_transfer", "run_demo"]
