"""What schemathesis makes of the description, sent to the running service: does each answer stand in it?"""

import asyncio
import sys
from pathlib import Path

from structlog.testing import capture_logs

from service_b.app import create_app
from service_b.database import DatabaseSettings
from service_b.tokens import token
from service_b.tokens.file import write_line
from tests.clients import serving
from tests.service_b.api.test_routes import settings_for
from tests.system.spawning import ROOT, base_environment

CONFIG = Path(__file__).parent / "schemathesis.toml"


async def test_every_answer_is_described(database: DatabaseSettings, tmp_path: Path) -> None:
    """No 500, no undocumented answer, no bad request that is taken and no good one that is refused."""
    text = token.make()
    tokens = tmp_path / "tokens"
    tokens.write_text(write_line(text, "oss", ["admin"], ["*"], None) + "\n")
    app = create_app(settings_for(database, tokens_file=tokens))
    with capture_logs() as logs:
        async with serving(app) as client:
            url = f"http://{client.host}:{client.port}/openapi.json"
            process = await asyncio.create_subprocess_exec(
                *(sys.executable, "-m", "schemathesis.cli", f"--config-file={CONFIG}", "--no-color", "run", url),
                f"--header=Authorization:Bearer {text}",
                cwd=tmp_path,
                env=base_environment() | {"PYTHONPATH": str(ROOT)},
                stdout=asyncio.subprocess.PIPE,
                stderr=asyncio.subprocess.STDOUT,
            )
            output, _ = await process.communicate()
    assert process.returncode == 0, output.decode()
    assert not [entry for entry in logs if entry["event"].endswith(".bug")]
