"""Keeps features in a directory, for later runs and other processes.

    <directory>/CACHEDIR.TAG, .gitignore      mark it as a cache
    <directory>/<fingerprint>/about.json      what the features are (not needed to read them)
    <directory>/<fingerprint>/<run>/          an LMDB file, written by one process only
    <directory>/<fingerprint>/<run>.lock      locked while that process has the fingerprint open

A process never writes to a file that another one made, so it can't be harmed by a damaged one, and
never waits for another one's lock. A file whose `.lock` isn't held by any process is complete.
"""
