"""The gRPC services and their ports: checks requests, calls the coordinator, builds responses."""
