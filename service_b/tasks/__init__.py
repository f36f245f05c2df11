"""The tasks: all of their SQL, a module a question.

Statements that wait for row locks take them in the order of the equipment id, so that they cannot deadlock.
"""
