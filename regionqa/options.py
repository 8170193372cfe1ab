"""Options of commands: type, default, help and check, each defined once."""
