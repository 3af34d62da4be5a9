"""The demo behind ``keras-freeze demo``: one ``fit`` beside two, on handwritten digits."""

from keras_freeze.demo.methods import Result
from keras_freeze.demo.run import run_demo

__all__ = ["Result", "run_demo"]
