"""Settings of the results process."""

from pydantic import Field

from messaging.settings import BrokerSettings
from runtime.settings import BearerSecret, Port, ProcessSettings
from service_b.database import DatabaseSettings


class Settings(BrokerSettings, DatabaseSettings, ProcessSettings):
    """How often and how soon attempts are made again, and what a configurator must know to be given leases."""

    health_port: Port = 7775
    lease_token: BearerSecret | None = None
    max_attempts: int = Field(3, ge=1, le=1000)
    retry_base_seconds: float = Field(1, gt=0, le=86400, allow_inf_nan=False)
    retry_max_seconds: float = Field(300, gt=0, le=86400, allow_inf_nan=False)
