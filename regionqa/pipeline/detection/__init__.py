"""The command `detect`: images of a command line to boxes in files and drawings."""
