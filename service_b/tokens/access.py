"""What the holder of a token may do."""

import math
import re
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from datetime import datetime
from fnmatch import translate
from typing import Literal, Self, get_args

Role = Literal["submit", "read", "operate", "admin"]
ROLES: frozenset[Role] = frozenset(get_args(Role))


@dataclass(frozen=True, slots=True)
class Access:
    """What one token is good for. `name` tells whose it is, and whose a task is that was submitted with it."""

    name: str
    roles: frozenset[Role]
    # Matches the serials of its devices.
    devices: re.Pattern[str]
    # The same for LIKE, in SQL; None: all devices are.
    patterns: tuple[str, ...] | None = None
    # Until when, in seconds since 1970.
    expires: float = math.inf

    @classmethod
    def of(cls, name: str, roles: Iterable[Role], devices: Collection[str], expires: datetime | None) -> Self:
        """Make it of what the file says. In a pattern, `*` stands for any characters; an admin's are not looked at."""
        held = frozenset(roles)
        if "admin" in held:
            held, devices = ROLES, ("*",)
        matching = re.compile("|".join(map(translate, devices)))
        patterns = None if "*" in devices else tuple(device.replace("*", "%") for device in devices)
        return cls(name, held, matching, patterns, expires.timestamp() if expires else math.inf)

    def covers(self, equipment_id: str) -> bool:
        """Tell whether a device is one of the token's."""
        return self.devices.match(equipment_id) is not None

    def sees(self, equipment_id: str, submitted_by: str | None) -> bool:
        """Tell whether a task may be seen: its device, and the name of the token that it was submitted with."""
        if not self.covers(equipment_id):
            return False
        return "operate" in self.roles or ("read" in self.roles and submitted_by == self.name)

    def acts_on(self, equipment_id: str, submitted_by: str | None) -> bool:
        """Tell whether a task may be changed: the client's own, or any of the devices that it operates."""
        return self.covers(equipment_id) and ("operate" in self.roles or submitted_by == self.name)
