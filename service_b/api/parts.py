"""What the handlers work with, under its keys in the application."""

from datetime import timedelta

from aiohttp import web
from aiohttp.web_urldispatcher import AbstractResource

from service_b.acts import Acts
from service_b.listings import Listings
from service_b.resources import Resources
from service_b.statuses import Statuses
from service_b.submission import Submission
from service_b.waits import Waits

APP_NAME = web.AppKey("APP_NAME", str)
SUBMISSION = web.AppKey("SUBMISSION", Submission)
WAITS = web.AppKey("WAITS", Waits)
STATUSES = web.AppKey("STATUSES", Statuses)
RESOURCES = web.AppKey("RESOURCES", Resources)
LISTINGS = web.AppKey("LISTINGS", Listings)
ACTS = web.AppKey("ACTS", Acts)
HORIZON = web.AppKey("HORIZON", timedelta)
"""How far ahead a task may begin or be given up."""
PROBLEMATIC = web.AppKey("PROBLEMATIC", frozenset[AbstractResource])
"""Where errors are told as problems."""
