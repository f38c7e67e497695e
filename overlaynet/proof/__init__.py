"""Questions to a cluster about its packets. What `trace` decides without I/O is carried out here."""
