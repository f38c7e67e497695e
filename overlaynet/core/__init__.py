"""The pure heart: what should be, from what is known. No I/O, no clock, no randomness of its own."""
