"""What chaos, benchmarks and tests use: processes, servers, crowds of clients, a proxy."""
