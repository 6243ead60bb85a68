"""Plain Harbor task folders made for one test."""

from collections.abc import Mapping
from pathlib import Path

PLAIN: Mapping[str, str] = {
    "task.toml": 'version = "1.0"\n',
    "instruction.md": "# Make it work\n\nPlease.\n",
    "environment/Dockerfile": "FROM debian\n",
    "tests/test.sh": "echo 1 > /logs/verifier/reward.txt\n",
}

CLINE_TOML = """\
version = "1.0"

[metadata]
author_name = "unknown"
author_email = "unknown@example.org"
difficulty = "medium"
category = "software_engineering"
tags = [ "python", "real-world-task",]
custom_docker_compose = true

[verifier]
timeout_sec = 1800.0

[agent]
timeout_sec = 900.0

[environment]
build_timeout_sec = 700.0
cpus = 1
memory = "2G"
storage = "10G\""""
"""As the tasks of cline-bench have it, without a final newline."""

CLINE_COMPOSE = """\
# what a task that needs a platform has
services:
  main:
    platform: linux/amd64
    build:
      context: .
      dockerfile: Dockerfile
    command: ["sh", "-c", "sleep infinity"]
    environment:
      - TEST_DIR=${TEST_DIR}
    volumes:
      - ${HOST_VERIFIER_LOGS_PATH}:${ENV_VERIFIER_LOGS_PATH}
      - ${HOST_AGENT_LOGS_PATH}:${ENV_AGENT_LOGS_PATH}
    deploy:
      resources:
        limits:
          cpus: ${CPUS}
          memory: ${MEMORY}"""


def harbor_folder(root: Path, files: Mapping[str, str | None] | None = None) -> Path:
    """Write `PLAIN` and ``files`` over it below ``root``; None takes a file away."""
    for name, text in {**PLAIN, **(files or {})}.items():
        if text is not None:
            path = root / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(text.encode())
    return root
