"""The second process of service B: it writes down what came of each attempt."""
