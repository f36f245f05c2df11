"""Another client of the database, as in the tests of the statements."""

from tests.service_b.tasks.conftest import other

__all__ = ["other"]
