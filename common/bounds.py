"""The bounds of federated.proto that the server keeps to and the client knows without asking."""

import re

MAX_METRICS = 32
# In characters.
MAX_METRIC_NAME = 64
MAX_TOKEN = 128
MAX_TASK_NAME = 256
BLAKE3 = re.compile(r"[0-9a-f]{64}")
