"""Settings of the web process."""

from pydantic import Field

from messaging.settings import BrokerSettings
from runtime.settings import OwnHost, Port, ProcessSettings
from service_b.database import DatabaseSettings


class Settings(BrokerSettings, DatabaseSettings, ProcessSettings):
    """`service_a_grace_seconds` is what service A needs besides the time that it waits for the device."""

    app_name: str = "SERVICE_B"
    app_host: OwnHost = "0.0.0.0"
    app_port: Port = 7776
    service_a_grace_seconds: float = Field(75, ge=0, le=86400, allow_inf_nan=False)
    task_deadline_seconds: float = Field(86400, gt=0, le=31_536_000, allow_inf_nan=False)
