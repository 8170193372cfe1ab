"""Image reading and preprocessing."""
