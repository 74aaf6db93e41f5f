"""What server and client share: tensors, transfers, tasks, settings, logs and errors.

Knows nothing about rounds, sessions or gRPC.
"""

__version__ = "0.1.0"
