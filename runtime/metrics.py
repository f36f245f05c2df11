"""What batchers count."""

from prometheus_client import Histogram

BATCH_SIZE = Histogram(
    "batch_size", "Items per flush", ["batch"], buckets=(1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000)
)
