"""The overlaynet agent: the program on every host. Wiring and the loop; the thinking is in `overlaynet`."""
