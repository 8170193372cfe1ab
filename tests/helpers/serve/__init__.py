"""Stand-ins for what `regionqa serve` needs."""
