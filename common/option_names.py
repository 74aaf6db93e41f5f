"""The names of all programs' options, for one machine may hold environment variables for several.

So each program can tell another's variable from a mistyped one. A test compares with the options.
"""

from common.algorithms.registry import flags

_SERVER = """
    rounds task model local_layers data_dir seed run_dir resume config num_partitions partitioner
    alpha shards_per_client partition_seed validation_fraction min_clients fraction min_cohort
    over_select report_goal quorum report_deadline max_attempts lease local_epochs batch_size lr
    momentum weight_decay proximal_mu hyperparameters strategy strategy_options evaluate_every
    client_evaluate_every evaluation_clients fine_tune_epochs target_accuracy patience keep_rounds
    max_examples max_update_norm max_norm_ratio max_share max_clients tls_cert tls_key
    tls_client_ca tls_crl insecure bind admin_bind metrics_port otlp_endpoint threads mlflow_uri
    mlflow_experiment mlflow_model
"""
_CLIENT_ALONE = """
    partition server state_dir client_id device max_wait tls_ca join_token_file
"""
# Where this project's tests find data sets.
_TESTS = "test_data"

ALL_OPTIONS = frozenset([*f"{_SERVER} {_CLIENT_ALONE} {_TESTS}".split(), *flags()])
