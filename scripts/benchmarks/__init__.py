"""The benchmarks behind `./scripts/bench`: one file a subject, each figure beside its floor."""
