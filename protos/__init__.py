"""The wire contract, federated.proto, and the Python code that is generated from it."""
