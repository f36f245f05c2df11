"""What browsers say of where a request comes from: a page of another site must not ask us in its reader's name.

A browser adds what the page cannot read or change, be it our address in a network that the page's author cannot reach,
or a proxy in front of us that knows the reader. There is no CORS: nothing here is for pages of others.
"""

from multidict import CIMultiDictProxy, istr

from service_b.api.errors import OtherSiteError

SITE, ORIGIN, HOST = istr("Sec-Fetch-Site"), istr("Origin"), istr("Host")
OWN = {"same-origin", "none"}
"""A page of ours, or the user; see W3C Fetch Metadata, 2.3."""


def refuse_other_sites(headers: CIMultiDictProxy[str]) -> None:
    """Raise `OtherSiteError` for what a page of another site sends. Clients that are no browsers say none of this."""
    if SITE in headers:
        if not OWN.issuperset(headers.getall(SITE)):
            raise OtherSiteError
    elif ORIGIN in headers:  # An old browser, or one that does not take our address for trustworthy.
        host = headers.get(HOST, "").lower()
        # Without the scheme: a proxy may speak TLS for us.
        if not host or {origin.partition("://")[2].lower() for origin in headers.getall(ORIGIN)} != {host}:
            raise OtherSiteError
