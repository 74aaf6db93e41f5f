"""The rules of a round, as pure functions: no clock, no file, no socket, no random source."""
