"""The aggregation strategies, one a module: how a cohort's updates change the global model.

Pure: tensors in, tensors out. They know nothing about files, clients or rounds.
"""
