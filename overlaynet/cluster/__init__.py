"""Which cluster is meant, a lab of this machine or the real one that this host is in, and how it is asked."""
