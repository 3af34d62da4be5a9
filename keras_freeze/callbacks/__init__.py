"""The face of the library: one public callback a file, over a conductor that does the work."""
