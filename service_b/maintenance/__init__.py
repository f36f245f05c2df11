"""What makes sure that every task ends, and that the tables stay small."""
