"""What `handbook` reads files and simulates payments with: a module of this name beside a use case is found by mlpkg."""

from mlpkg.examples.fraud.simulator import read, simulate

__all__ = ["read", "simulate"]
