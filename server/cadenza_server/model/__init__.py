"""Frozen values that every layer speaks: words, commands, events, errors, settings. No behaviour beyond checking."""
