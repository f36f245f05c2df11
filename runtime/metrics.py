"""What batchers, connections and logs count."""

from prometheus_client import Counter, Gauge, Histogram

BATCH_SIZE = Histogram(
    "batch_size", "Items per flush", ["batch"], buckets=(1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000)
)
CONNECTIONS = Gauge("http_connections", "Connections of clients that are open")
DROPPED = Counter("http_connections_dropped", "Connections that were ended before their client ended them", ["reason"])
MALFORMED = Counter("http_malformed", "Requests that were no HTTP")
LOST_RECORDS = Counter("log_records_lost", "Log records that did not get out, because nobody read the log")
