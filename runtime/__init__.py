"""How a process of ours lives and is watched: settings, start, logs, health, metrics, batching."""
