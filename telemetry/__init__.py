"""How a process of ours is watched: settings of its logs, logs, health routes, metrics."""
