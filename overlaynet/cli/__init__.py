"""The `overlaynet` command: verbs, tables, errors. Thin: what it does is done by the library."""
