"""Box file formats: a module each."""
