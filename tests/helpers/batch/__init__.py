"""Helpers of the tests of `regionqa batch`."""
