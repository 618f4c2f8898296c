#!/usr/bin/env bash
# scripts/gpu_check.sh OUT [--part NAME] [--dry-run] [--wheels DIR] [--images FILE] [--seconds N]: builds mixfast for the
# GPU of this machine, measures, trains and tests it there, and leaves the evidence in OUT and OUT.tar.gz. Ends inside
# ten minutes; called again, it goes on where it stopped. Uses the machine's own python3 (or $PYTHON) and torch, installs
# nothing there and needs no network. See scripts/gpu_check.py.
set -euo pipefail
exec "${PYTHON:-python3}" "$(dirname "${BASH_SOURCE[0]}")/gpu_check.py" "$@"
