"""A container overlay network, and the lab that proves what its packets do."""

__version__ = "0.1.0"
