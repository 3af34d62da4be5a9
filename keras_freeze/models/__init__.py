"""Models that add the callbacks of keras_freeze by themselves, for tools that call `fit`."""
