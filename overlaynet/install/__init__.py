"""The agent as a service of this machine: which files that takes, and what systemd is told.

contents    the files, as the project has them, each with our mark
plan        files wanted against files there: what is made, replaced, taken away, left alone (pure)
disk        reading what is there, carrying a plan out
machine     systemd, modules and whoever else has to read its files again
service     install and uninstall: all of it in order
"""
